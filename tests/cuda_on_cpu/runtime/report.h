// Findings: hazards that a kernel caused.
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
  Place place = 0;  // of the offending access
  Place other = 0;  // of the earlier, conflicting access, if any
  // Threads met at two code addresses where one was expected. The compiler may have duplicated a line, so Python drops
  // the finding if both addresses map to the same line.
  bool only_if_lines_differ = false;
};

struct Finding {
  std::string hazard;  // one of a fixed set: "race: write after read", ...
  std::string detail;
  Where where;
  bool in_thread = false;  // block and thread are set
  Index block, thread;
  size_t count = 1;  // occurrences at this place
};

// thread may be null.
Finding finding_of(const char* hazard, const Where& where, const std::string& detail, const Thread* thread);

// Process-wide and thread-safe.
class Findings {
 public:
  void clear();
  // Adds a finding. If an equal one (hazard and places) exists, counts it, keeps its detail and returns false.
  bool add(const Finding& finding);
  bool known(const char* hazard, Place place, Place other);
  size_t size();
  std::vector<Finding> take();
};
extern Findings findings;

void add_finding(const char* hazard, const Where& where, const std::string& detail);

// report("race: write after read", {place, other}, "offset ", 12, ...), by the running thread or the host.
template <typename... Parts>
void report(const char* hazard, const Where& where, const Parts&... parts) {
  if (findings.known(hazard, where.place, where.other)) return;  // only counted, without formatting the text
  std::ostringstream detail;
  ((detail << parts), ...);
  add_finding(hazard, where, detail.str());
}

}  // namespace cuda_on_cpu
