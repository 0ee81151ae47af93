// Symbols that code built with a newer gcc and glibc needs but manylinux_2_28 (glibc 2.28, libstdc++ of gcc 8) lacks.
// Our copies are hidden by csrc/exports.map. See also build_tools/glibc.py.
#include <condition_variable>
#include <mutex>
#include <new>
#include <sstream>

// GLIBC_2.32. shared_ptr reads it to skip atomics in single-threaded processes; false is always safe.
extern "C" {
extern char __libc_single_threaded;
char __libc_single_threaded = 0;
}

namespace std {
// GLIBCXX_3.4.29: new T[n] with a negative or huge n.
[[noreturn]] void __throw_bad_array_new_length();  // declared since gcc 12
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

// GLIBCXX_3.4.30. libstdc++'s own function does the same.
void condition_variable::wait(unique_lock<mutex>& lock) noexcept {
  pthread_cond_wait(native_handle(), lock.mutex()->native_handle());
}

// GLIBCXX_3.4.26: the default constructors.
template basic_stringstream<char>::basic_stringstream();
template basic_istringstream<char>::basic_istringstream();
template basic_ostringstream<char>::basic_ostringstream();
}  // namespace std
