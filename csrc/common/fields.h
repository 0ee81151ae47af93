// Fields that an op returns to Python with a text, as a JSON object: ints, numbers, names and lists of such objects.
#pragma once
#include <cmath>
#include <cstdint>
#include <iomanip>
#include <sstream>
#include <string>
#include <vector>

namespace resnet_fused {

class Fields {
 public:
  Fields& add(const char* name, int64_t value) { return put(name, std::to_string(value)); }

  // 17 digits: Python reads the same number. A number that is not finite becomes null.
  Fields& add(const char* name, double value) {
    std::ostringstream digits;
    digits << std::setprecision(17) << value;
    return put(name, std::isfinite(value) ? digits.str() : "null");
  }

  Fields& add(const char* name, const std::string& value) { return put(name, quoted(value)); }
  Fields& add(const char* name, const char* value) { return add(name, std::string(value)); }

  Fields& add(const char* name, const std::vector<Fields>& values) {
    std::string list;
    for (const Fields& each : values) list += (list.empty() ? "" : ", ") + each.json();
    return put(name, "[" + list + "]");
  }

  std::string json() const { return "{" + members_ + "}"; }

 private:
  Fields& put(const char* name, const std::string& value) {
    members_ += (members_.empty() ? "" : ", ") + quoted(name) + ": " + value;
    return *this;
  }

  static std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') out += '\\';
      out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
    return out + '"';
  }

  std::string members_;
};

}  // namespace resnet_fused
