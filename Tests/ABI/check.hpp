// check.hpp: the little that the C++ tests share, with and without exceptions.
//
// A test is a function without arguments.  RUN runs it and prints a line, "ok", "FAIL" or "skip" and PROGRAM.NAME; an
// exception that leaves it is a failure.  PROGRAM is defined before this is included.
#ifndef CHECK_HPP
#define CHECK_HPP

#include <cstdio>
#include <string>
#include <thalweg/thalweg.hpp>

namespace {

int failures = 0;  // of the test that runs
int bad = 0;       // tests that failed
bool skipped = false;

void fail(int line, const std::string& text) {
  ++failures;
  std::printf("       " PROGRAM ".cpp:%d: %s\n", line, text.c_str());
}

#define CHECK(condition) \
  do { \
    if (!(condition)) fail(__LINE__, #condition); \
  } while (0)

bool have(const std::string& name) {
  thalweg::Status known;
  thalweg::method(name, known);
  return known.ok();
}

#define NEED(name) \
  do { \
    if (!have(name)) { \
      skipped = true; \
      return; \
    } \
  } while (0)

void run(const char* name, void (*test)()) {
  failures = 0;
  skipped = false;
#if defined(__cpp_exceptions)
  try {
    test();
  } catch (const std::exception& error) {
    fail(__LINE__, std::string("an exception: ") + error.what());
  }
#else
  test();
#endif
  std::printf("%s " PROGRAM ".%s\n", failures > 0 ? "FAIL" : skipped ? "skip" : "ok  ", name);
  std::fflush(stdout);
  bad += failures > 0;
}

}  // namespace

#define RUN(test) run(#test, test)

#endif  // CHECK_HPP
