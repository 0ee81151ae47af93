#include "runtime/report.h"

#include <mutex>

#include "runtime/block.h"

namespace cuda_on_cpu {

Findings findings;

namespace {

constexpr size_t kMostFindings = 64;  // distinct findings (hazard and places); further ones are dropped

std::mutex mutex;
std::vector<Finding> all;

Finding* find(const char* hazard, Place place, Place other) {
  for (Finding& f : all)
    if (f.where.place == place && f.where.other == other && f.hazard == hazard) return &f;
  return nullptr;
}

}  // namespace

void Findings::clear() {
  const std::lock_guard<std::mutex> lock(mutex);
  all.clear();
}

bool Findings::known(const char* hazard, Place place, Place other) {
  const std::lock_guard<std::mutex> lock(mutex);
  Finding* f = find(hazard, place, other);
  if (f) ++f->count;
  return f || all.size() >= kMostFindings;
}

bool Findings::add(const Finding& finding) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (Finding* f = find(finding.hazard.c_str(), finding.where.place, finding.where.other)) {
    ++f->count;
    return false;
  }
  all.push_back(finding);
  return true;
}

size_t Findings::size() {
  const std::lock_guard<std::mutex> lock(mutex);
  return all.size();
}

std::vector<Finding> Findings::take() {
  const std::lock_guard<std::mutex> lock(mutex);
  return std::move(all);
}

Finding finding_of(const char* hazard, const Where& where, const std::string& detail, const Thread* thread) {
  Finding f;
  f.hazard = hazard;
  f.detail = detail;
  f.where = where;
  f.in_thread = thread;
  if (thread) {
    f.block = thread->block->index();
    f.thread = thread->index;
  }
  return f;
}

void add_finding(const char* hazard, const Where& where, const std::string& detail) {
  findings.add(finding_of(hazard, where, detail, on_fiber() ? &this_thread() : nullptr));
}

}  // namespace cuda_on_cpu
