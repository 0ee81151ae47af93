// Whether objects still have the attributes that they had: asked before every replay (resnet_fused/modules/_replay.py),
// of data that the kernels of the last call have evicted from the caches. It compares pointers and reads no values;
// dict.__eq__ in Python takes five times as long.
#include <Python.h>

// The interpreter has these functions; weak, as in module.c.
#pragma weak PyArg_UnpackTuple
#pragma weak PyBool_FromLong
#pragma weak PyDict_Next
#pragma weak PyErr_Occurred
#pragma weak PyList_GetItem
#pragma weak PyList_Size
#pragma weak PyObject_GenericGetDict
#pragma weak PyTuple_GetItem
#pragma weak PyTuple_Size
#pragma weak PyType_GetFlags
#pragma weak _Py_Dealloc
#pragma weak _Py_FalseStruct
#pragma weak _Py_NoneStruct

// Whether a dictionary holds these keys and values, in this order, or a list these items.
static int holds(PyObject* container, PyObject* items) {
  const Py_ssize_t size = PyTuple_Size(items);
  Py_ssize_t i = 0;
  if (PyList_Check(container)) {
    if (PyList_Size(container) != size) return 0;
    while (i < size && PyList_GetItem(container, i) == PyTuple_GetItem(items, i)) ++i;
    return i == size;
  }
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(container, &at, &key, &value); i += 2)
    if (i == size || PyTuple_GetItem(items, i) != key || PyTuple_GetItem(items, i + 1) != value) return 0;
  return i == size;
}

// `expected`: of each attribute its name, its value, and what that holds: a tuple for holds(), None if nothing that is
// compared, False if the value may be any.
static int has_attributes(PyObject* object, PyObject* expected) {
  PyObject* attributes = PyObject_GenericGetDict(object, NULL);
  if (!attributes) return 0;
  const Py_ssize_t size = PyTuple_Size(expected);
  Py_ssize_t i = 0;
  int same = 1;
  PyObject *name, *value;
  for (Py_ssize_t at = 0; same && PyDict_Next(attributes, &at, &name, &value); i += 3) {
    same = i < size && PyTuple_GetItem(expected, i) == name;
    if (!same) break;
    PyObject* contents = PyTuple_GetItem(expected, i + 2);
    if (contents == Py_False) continue;
    same = PyTuple_GetItem(expected, i + 1) == value && (contents == Py_None || holds(value, contents));
  }
  Py_DECREF(attributes);
  return same && i == size;
}

// unchanged(objects, types, attributes): tuples of the same length.
PyObject* rf_unchanged(PyObject* self, PyObject* args) {
  (void)self;
  PyObject *objects, *types, *attributes;
  if (!PyArg_UnpackTuple(args, "unchanged", 3, 3, &objects, &types, &attributes)) return NULL;
  const Py_ssize_t size = PyTuple_Size(objects);
  int same = size == PyTuple_Size(types) && size == PyTuple_Size(attributes);
  for (Py_ssize_t i = 0; same && i < size; ++i) {
    PyObject* object = PyTuple_GetItem(objects, i);
    same = (PyObject*)Py_TYPE(object) == PyTuple_GetItem(types, i) &&
           has_attributes(object, PyTuple_GetItem(attributes, i));
  }
  return PyErr_Occurred() ? NULL : PyBool_FromLong(same);
}
