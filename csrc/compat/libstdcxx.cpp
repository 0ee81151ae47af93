// What code built with a new gcc and glibc expects of the system but manylinux_2_28 (glibc 2.28, libstdc++ of gcc 8)
// does not have. Our own hidden copies; csrc/exports.map shows them to nobody. See also build_tools/glibc.py.
#include <new>
#include <sstream>

#define HIDDEN __attribute__((visibility("hidden")))

// GLIBC_2.32. shared_ptr asks whether it may skip atomics; "no" is always right.
extern "C" {
HIDDEN extern char __libc_single_threaded;
HIDDEN char __libc_single_threaded = 0;
}

namespace std {
// GLIBCXX_3.4.29: new T[n] of a negative or enormous n.
[[noreturn]] HIDDEN void __throw_bad_array_new_length();
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

// GLIBCXX_3.4.26: the default constructors.
template basic_stringstream<char>::basic_stringstream();
template basic_istringstream<char>::basic_istringstream();
template basic_ostringstream<char>::basic_ostringstream();
}  // namespace std
