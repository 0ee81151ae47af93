// The emulator as a Python module: loads kernel libraries and calls their functions.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include "bindings/library.h"

namespace py = pybind11;

namespace cuda_on_cpu::bindings {

namespace {

Value value_of(const py::handle& object) {
  if (object.is_none()) return {};
  if (py::isinstance<py::bool_>(object)) return object.cast<bool>();
  if (py::isinstance<py::int_>(object)) return object.cast<int64_t>();
  if (py::isinstance<py::float_>(object)) return object.cast<double>();
  if (py::isinstance<py::str>(object)) return object.cast<std::string>();
  if (py::isinstance<py::dict>(object)) {
    Value::Dict dict;
    for (const auto& [key, item] : py::reinterpret_borrow<py::dict>(object))
      dict.emplace_back(key.cast<std::string>(), value_of(item));
    return dict;
  }
  Value::List list;
  for (const py::handle item : py::reinterpret_borrow<py::sequence>(object)) list.push_back(value_of(item));
  return list;
}

py::object object_of(const Value& value) {
  if (const bool* b = value.get_if<bool>()) return py::bool_(*b);
  if (const int64_t* i = value.get_if<int64_t>()) return py::int_(*i);
  if (const double* d = value.get_if<double>()) return py::float_(*d);
  if (const std::string* text = value.get_if<std::string>()) return py::str(*text);
  if (const Value::List* items = value.get_if<Value::List>()) {
    py::list list;
    for (const Value& item : *items) list.append(object_of(item));
    return value.is_tuple() ? py::object(py::tuple(list)) : py::object(list);
  }
  if (const Value::Dict* items = value.get_if<Value::Dict>()) {
    py::dict dict;
    for (const auto& [key, item] : *items) dict[py::str(key)] = object_of(item);
    return dict;
  }
  return py::none();
}

// A kernel library, loaded until close().
class Library {
 public:
  explicit Library(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) throw std::runtime_error(dlerror());
    using Entry = const Functions& (*)();
    functions_ = &reinterpret_cast<Entry>(dlsym(handle_, "cuda_on_cpu_functions"))();
  }

  py::object call(const std::string& name, const py::args& arguments) const {
    if (!handle_) throw std::runtime_error("the library is closed");
    const auto found = functions_->find(name);
    if (found == functions_->end()) throw py::attribute_error("no function is called " + name);
    Value::List values;
    for (const py::handle argument : arguments) values.push_back(value_of(argument));
    return object_of(found->second(values));
  }

  void close() {
    if (handle_) dlclose(handle_);
    handle_ = nullptr;
  }

 private:
  void* handle_;
  const Functions* functions_;
};

}  // namespace

}  // namespace cuda_on_cpu::bindings

PYBIND11_MODULE(emulator, m) {
  using cuda_on_cpu::bindings::Library;
  py::class_<Library>(m, "Library")
      .def(py::init<const std::string&>())
      .def("call", &Library::call)
      .def("close", &Library::close);
}
