import ThalwegCore

/// The release; the one place that says so.
package let release = "0.1.0"

/// How many threads a step may use.
package func setThreads(_ count: Int) throws(Failure) {
  guard count >= 1, count <= Threads.most else {
    throw Failure(Status.range, "the number of threads must be 1 to \(Threads.most), got \(count)")
  }
  Threads.setCount(count)
}
