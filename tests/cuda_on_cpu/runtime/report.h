// What a kernel did wrong, or what cannot be told apart from wrong.
#pragma once
#include <cstddef>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_on_cpu.h"
#include "runtime/place.h"

namespace cuda_on_cpu {

struct Thread;

struct Where {
  Place place = 0;  // of the access that was found out
  Place other = 0;  // of the earlier one, if two are at odds
  // Two code addresses met where one was expected. The compiler may have copied a line: Python drops the finding if
  // both are the same line.
  bool only_if_lines_differ = false;
};

struct Finding {
  std::string hazard;  // one of a fixed set: "race: write after read", ...
  std::string detail;
  Where where;
  bool in_thread = false;  // thread and block are known
  Index block, thread;
  size_t count = 1;  // how often, at this place
};

// thread may be null.
Finding finding_of(const char* hazard, const Where& where, const std::string& detail, const Thread* thread);

// Of the whole process; any worker may add to it.
class Findings {
 public:
  void clear();
  // Counts a finding; false if one like it is known, whose detail stays.
  bool add(const Finding& finding);
  bool known(const char* hazard, Place place, Place other);
  size_t size();
  std::vector<Finding> take();
};
extern Findings findings;

void add_finding(const char* hazard, const Where& where, const std::string& detail);

// report("race: write after read", {place, other}, "offset ", 12, ...) of the running thread, or of the host.
template <typename... Parts>
void report(const char* hazard, const Where& where, const Parts&... parts) {
  if (findings.known(hazard, where.place, where.other)) return;  // counted; the text need not be made
  std::ostringstream detail;
  ((detail << parts), ...);
  add_finding(hazard, where, detail.str());
}

}  // namespace cuda_on_cpu
