import CThalweg
import Glibc

/// Runs `count` independent tasks on a few threads. Results never depend on which thread runs what.
///
/// The pool is made of pthreads, started by the first step that is large enough. A child of fork() starts its own: the
/// threads do not come along, so the child drops the pool before fork() returns there, while it has one thread.
public enum Threads {
  nonisolated(unsafe) private static var chosen: Int32 = 0
  nonisolated(unsafe) private static var executor: tw_executor?
  nonisolated(unsafe) private static var executorContext: UnsafeMutableRawPointer?
  /// Unmanaged, because the child of a fork() must not release what another thread may have been at.
  nonisolated(unsafe) private static var pool: Unmanaged<Pool>?
  nonisolated(unsafe) private static var flag: UnsafeMutablePointer<Int64>?
  nonisolated(unsafe) private static let busy: UnsafeMutablePointer<Int64> = {
    let p = UnsafeMutablePointer<Int64>.allocate(capacity: 1)
    p.pointee = 0
    // What the child looks at must be there already: another thread of the parent may be at this very line.
    flag = p
    pthread_atfork(nil, nil) {
      Threads.pool = nil
      if let flag = Threads.flag { twi_store(flag, 0) }  // whoever held it did not come along
    }
    return p
  }()
  public static let most = 1024

  public static var count: Int {
    if chosen == 0 {
      var n = twi_cpu_count()
      if let text = getenv("THALWEG_NUM_THREADS"), let k = Int32(String(cString: text)), k >= 1 { n = k }
      chosen = min(n, Int32(most))
    }
    return Int(chosen)
  }
  public static func setCount(_ n: Int) { chosen = Int32(n) }
  public static func setExecutor(_ e: tw_executor?, _ context: UnsafeMutableRawPointer?) {
    (executor, executorContext) = (e, context)
  }

  /// Calls `body(i)` for every i below `count`; on the calling thread alone when `parallel` is false.
  public static func run(_ count: Int, parallel: Bool, _ body: (Int) -> Void) {
    guard shares(count, parallel) else {
      for i in 0..<count { body(i) }
      return
    }
    withoutActuallyEscaping(body) { escaping in
      var task = escaping
      withUnsafeMutablePointer(to: &task) { p in
        run(count, p) { context, i in
          context.unsafelyUnwrapped.assumingMemoryBound(to: ((Int) -> Void).self).pointee(Int(i))
        }
      }
    }
  }

  /// The same with a context in place of a closure, which would be allocated: `task(context, i)`.
  public static func run(_ count: Int, parallel: Bool, _ context: UnsafeMutableRawPointer, _ task: tw_task) {
    if shares(count, parallel) { return run(count, context, task) }
    for i in 0..<count { task(context, i) }
  }

  private static func shares(_ count: Int, _ parallel: Bool) -> Bool {
    parallel && (min(self.count, count) > 1 || executor != nil)
  }
  private static func run(_ count: Int, _ context: UnsafeMutableRawPointer, _ task: tw_task) {
    if let executor { return executor(executorContext, task, context, count) }
    // One step at a time uses the pool; another that runs meanwhile stays on its own thread.
    guard twi_swap_if(busy, 0, 1) else {
      for i in 0..<count { task(context, i) }
      return
    }
    let threads = min(self.count, count)
    if let helpers = helpers(threads - 1) {
      helpers.run(count, threads - 1, task, context)
    } else {
      for i in 0..<count { task(context, i) }
    }
    twi_store(busy, 0)
  }

  /// The pool, with at least n threads; nil where none can be started. Only for the one who made `busy` 1.
  private static func helpers(_ n: Int) -> Pool? {
    if let pool {
      let p = pool.takeUnretainedValue()
      if p.threads >= n { return p }
      self.pool = nil
      p.stop()
      pool.release()
    }
    guard let p = Pool(n) else { return nil }
    pool = Unmanaged.passRetained(p)
    return p
  }
}

/// Lines of a tensor in a few parts that are worked on side by side. The cut does not depend on the number of threads.
public struct Parts {
  public static let most = 32
  public let lines: Int, count: Int

  /// `length`: elements of a line.
  public init(_ lines: Int, of length: Int) {
    self.lines = lines
    count = max(1, min(lines, Parts.most, lines &* length / Walker.parallelFrom))
  }
  /// All lines in one part.
  public init(whole lines: Int) { (self.lines, count) = (lines, 1) }

  @inlinable public func forEach(_ body: (_ part: Int, _ lines: Swift.Range<Int>) -> Void) {
    Threads.run(count, parallel: count > 1) { k in body(k, (lines &* k / count)..<(lines &* (k &+ 1) / count)) }
  }
  /// The sum of what `body` returns, in the order of the parts.
  @inlinable public func sum(_ body: (_ part: Int, _ lines: Swift.Range<Int>) -> Double) -> Double {
    withUnsafeTemporaryAllocation(of: Double.self, capacity: count) { sums in
      nonisolated(unsafe) let out = sums
      forEach { k, lines in out[k] = body(k, lines) }
      return sums.reduce(0, +)
    }
  }
}

/// Threads that wait for a job, take task numbers from a counter until none is left, and wait again.
private final class Pool {
  public let threads: Int
  private let shared: UnsafeMutablePointer<Shared>

  public struct Shared {
    public var mutex = pthread_mutex_t()
    public var start = pthread_cond_t()
    public var task: tw_task?
    public var context: UnsafeMutableRawPointer?
    public var depot: OpaquePointer?  // of the call that the job belongs to
    public var count = 0
    public var job: Int64 = 0  // number of the job; changes under the mutex
    public var next: Int64 = 0  // next task to take
    public var working: Int64 = 0  // helpers still inside the job
    public var wanted = 0  // helpers that may join it
    public var joined = 0
    public var quit = false
    public var alive: Int64 = 0
  }

  public init?(_ n: Int) {
    shared = .allocate(capacity: 1)
    shared.initialize(to: Shared())
    pthread_mutex_init(&shared.pointee.mutex, nil)
    pthread_cond_init(&shared.pointee.start, nil)
    var made = 0
    for _ in 0..<n {
      var id = pthread_t()
      var attributes = pthread_attr_t()
      pthread_attr_init(&attributes)
      pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
      twi_fetch_add(&shared.pointee.alive, 1)
      if pthread_create(&id, &attributes, Pool.loop, shared) != 0 {
        twi_fetch_add(&shared.pointee.alive, -1)
        pthread_attr_destroy(&attributes)
        break
      }
      pthread_attr_destroy(&attributes)
      made += 1
    }
    threads = n
    if made == 0 {
      shared.deallocate()
      return nil
    }
  }

  private static let loop: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? = { raw in
    let s = raw.unsafelyUnwrapped.assumingMemoryBound(to: Shared.self)
    // Signals of the host are the host's business.
    var all = sigset_t()
    sigfillset(&all)
    pthread_sigmask(SIG_BLOCK, &all, nil)
    var seen: Int64 = 0
    while true {
      // A short spin first: steps of a training loop that only steps follow each other closely.
      var spins = 0
      while twi_load(&s.pointee.job) == seen, spins < 2000 { twi_pause(); spins += 1 }
      pthread_mutex_lock(&s.pointee.mutex)
      while s.pointee.job == seen, !s.pointee.quit { pthread_cond_wait(&s.pointee.start, &s.pointee.mutex) }
      if s.pointee.quit { break }
      seen = s.pointee.job
      let mine = s.pointee.joined < s.pointee.wanted
      if mine { s.pointee.joined += 1 }
      let (task, context, count, depot) = (s.pointee.task, s.pointee.context, s.pointee.count, s.pointee.depot)
      pthread_mutex_unlock(&s.pointee.mutex)
      guard mine, let task else { continue }
      twi_depot_work(depot)
      while true {
        let i = twi_fetch_add(&s.pointee.next, 1)
        if i >= count { break }
        task(context, Int(i))
      }
      twi_depot_work(nil)
      twi_fetch_add(&s.pointee.working, -1)
    }
    pthread_mutex_unlock(&s.pointee.mutex)
    if twi_fetch_add(&s.pointee.alive, -1) == 1 { s.deallocate() }
    return nil
  }

  public func run(_ count: Int, _ helpers: Int, _ task: tw_task, _ context: UnsafeMutableRawPointer) {
    let s = shared
    pthread_mutex_lock(&s.pointee.mutex)
    (s.pointee.task, s.pointee.context, s.pointee.count) = (task, context, count)
    s.pointee.depot = twi_depot_at_work()
    twi_store(&s.pointee.next, 0)
    (s.pointee.wanted, s.pointee.joined) = (helpers, 0)
    twi_store(&s.pointee.working, 0)
    twi_fetch_add(&s.pointee.job, 1)
    pthread_cond_broadcast(&s.pointee.start)
    pthread_mutex_unlock(&s.pointee.mutex)
    while true {
      let i = twi_fetch_add(&s.pointee.next, 1)
      if i >= count { break }
      task(context, Int(i))
    }
    // Close the job to late helpers, then wait for those inside.
    pthread_mutex_lock(&s.pointee.mutex)
    s.pointee.wanted = 0
    let joined = Int64(s.pointee.joined)
    pthread_mutex_unlock(&s.pointee.mutex)
    var spins = 0
    while twi_load(&s.pointee.working) != -joined {
      spins += 1
      if spins < 20_000 { twi_pause() } else { sched_yield() }
    }
  }

  public func stop() {
    pthread_mutex_lock(&shared.pointee.mutex)
    shared.pointee.quit = true
    pthread_cond_broadcast(&shared.pointee.start)
    pthread_mutex_unlock(&shared.pointee.mutex)
  }
}
