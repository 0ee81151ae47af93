// Arguments and results that cross between Python and kernel libraries. It needs no Python headers, so a binding
// compiles in a second and a library links only the emulator. module.cpp converts it from and to Python objects.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace cuda_on_cpu::bindings {

class Value {
 public:
  using List = std::vector<Value>;
  using Dict = std::vector<std::pair<std::string, Value>>;

  Value() = default;  // None
  Value(bool b) : value_(b) {}
  template <typename T, std::enable_if_t<std::is_integral_v<T> || std::is_enum_v<T>, int> = 0>
  Value(T i) : value_(static_cast<int64_t>(i)) {}
  Value(double d) : value_(d) {}
  Value(const char* text) : value_(std::string(text)) {}
  Value(std::string text) : value_(std::move(text)) {}
  Value(List list) : value_(std::move(list)) {}
  Value(Dict dict) : value_(std::move(dict)) {}
  template <typename T>
  Value(const std::vector<T>& items) : value_(List(items.begin(), items.end())) {}
  template <typename A, typename B>
  Value(const std::pair<A, B>& p) : value_(List{p.first, p.second}), is_tuple_(true) {}
  template <typename... T>
  Value(const std::tuple<T...>& t)
      : value_(std::apply([](const T&... items) { return List{items...}; }, t)), is_tuple_(true) {}

  template <typename T>
  const T* get_if() const {
    return std::get_if<T>(&value_);
  }
  const List& list() const { return get<List>("a list"); }
  bool is_tuple() const { return is_tuple_; }  // becomes a tuple in Python, so that it is hashable
  const Dict& dict() const { return get<Dict>("a dict"); }

  // Converts to T: Value, a number, enum or string, or a vector, pair or tuple of these.
  template <typename T>
  T as() const {
    return As<T>::of(*this);
  }
  template <typename T>
  T* pointer() const {
    return reinterpret_cast<T*>(as<uintptr_t>());
  }

  const Value* find(const char* key) const {
    for (const auto& [name, value] : dict())
      if (name == key) return &value;
    return nullptr;
  }
  const Value& operator[](const char* key) const {
    if (const Value* found = find(key)) return *found;
    throw std::invalid_argument(std::string("no argument is called ") + key);
  }
  const Value& operator[](size_t i) const { return list().at(i); }

 private:
  template <typename T, typename = void>
  struct As;

  template <typename T>
  const T& get(const char* wanted) const {
    if (const T* t = get_if<T>()) return *t;
    throw std::invalid_argument(std::string("an argument is not ") + wanted);
  }

  std::variant<std::monostate, bool, int64_t, double, std::string, List, Dict> value_;
  bool is_tuple_ = false;
};

template <typename T>
struct Value::As<T, std::enable_if_t<std::is_arithmetic_v<T>>> {
  static T of(const Value& v) {
    if (const bool* b = v.get_if<bool>()) return static_cast<T>(*b);
    if (const double* d = v.get_if<double>(); d && std::is_floating_point_v<T>) return static_cast<T>(*d);
    return static_cast<T>(v.get<int64_t>("a number"));
  }
};

template <typename T>
struct Value::As<T, std::enable_if_t<std::is_enum_v<T>>> {
  static T of(const Value& v) { return static_cast<T>(v.get<int64_t>("a number")); }
};

template <>
struct Value::As<Value> {
  static const Value& of(const Value& v) { return v; }
};

template <>
struct Value::As<std::string> {
  static const std::string& of(const Value& v) { return v.get<std::string>("a string"); }
};

template <typename T>
struct Value::As<std::vector<T>> {
  static std::vector<T> of(const Value& v) {
    std::vector<T> items;
    for (const Value& item : v.list()) items.push_back(item.as<T>());
    return items;
  }
};

template <typename A, typename B>
struct Value::As<std::pair<A, B>> {
  static std::pair<A, B> of(const Value& v) { return {v[size_t{0}].as<A>(), v[size_t{1}].as<B>()}; }
};

template <typename... T>
struct Value::As<std::tuple<T...>> {
  static std::tuple<T...> of(const Value& v) { return of(v, std::index_sequence_for<T...>()); }
  template <size_t... i>
  static std::tuple<T...> of(const Value& v, std::index_sequence<i...>) {
    return {v[i].template as<T>()...};
  }
};

}  // namespace cuda_on_cpu::bindings
