import ThalwegCore

/// What sequential gradient codes share: rounds of n workers, of whom some answer late in bursts.
///
/// The model that decoding rests on: at most lambda workers are late in W rounds that follow on each other, and none is
/// late again B to W − 1 rounds after it was. Where an answer leaves it the master waits for all workers.
private enum SequentialCode {
  static let parameters: [Parameter] = [
    .integer("n", nil, .within(1, 65536), "workers"), .integer("jobs", nil, .within(1, 0x1p24), "gradients to compute"),
    .integer("B", 1, .within(1, 4096), "rounds that a burst may last"),
    .integer("W", 2, .within(2, 8192), "rounds of the window"),
    .integer("lambda", 1, .atLeast(0), "workers that may be late in a window"),
  ]
  static let results: [Input] = [
    .result("decoded", "jobs", "round, from 0, after which each job is decodable; -1: never"),
    .result("iterations", "", "rounds"), .result("waits", "", "rounds in which the master waited for all"),
    .result("load", "", "share of the data that a worker handles in a round"),
  ]
  static func round(_ shape: String) -> RequestKind {
    RequestKind(
      "round", "one round: the workers get their tasks, and some answer in time",
      given: [
        .given("time", "", "the round, from 0"), .given("tasks", shape, "job of each worker's task; -1: none"),
        .given("parts", shape, "which part of that job it is"),
      ], wanted: [.wanted("answered", "n", "1 for every worker that answered in time, else 0")])
  }
  static let wait = RequestKind(
    "wait", "wait for all workers of this round", given: [.given("time", "", "the round")], wanted: [])

  static func validate(_ name: String, _ more: @escaping @Sendable (Int, Int) -> String? = { _, _ in nil })
    -> @Sendable (Hyper) throws(Failure) -> Void
  {
    { (h) throws(Failure) in
      let b = h.integer("B"), w = h.integer("W")
      guard h.lambda <= h.n else {
        throw Failure(Status.range, "\(name): `lambda` must be at most `n`, got \(text(h.lambda)) and \(text(h.n))")
      }
      guard b < w else { throw Failure(Status.range, "\(name): `B` must be below `W`, got \(b) and \(w)") }
      if let what = more(b, w) { throw Failure(Status.range, "\(name): \(what)") }
    }
  }

  /// Whether those who are late must be waited for; then all count as having answered.
  static func waits<T: Real>(
    _ io: DriverIO<T>, _ late: Vector<T>, _ answered: Vector<T>, _ h: Hyper, time: Int
  ) -> Bool {
    if holds(late, answered, h, time: time) { return false }
    answered.fill(1)
    io.waits += 1
    return true
  }
  /// Whether those who are late now keep to the model; `late` holds a row for each of the last W − 1 rounds, by round
  /// mod (W − 1).
  private static func holds<T: Real>(_ late: Vector<T>, _ answered: Vector<T>, _ h: Hyper, time: Int) -> Bool {
    let n = answered.count, window = h.integer("W") - 1, B = h.integer("B")
    var distinct = 0
    for i in 0..<n {
      var some = answered.p[i] == 0
      for back in 1...window where time - back >= 0 && late.p[(time - back) % window * n + i] != 0 {
        if answered.p[i] == 0, back >= B { return false }
        some = true
      }
      distinct += some ? 1 : 0
    }
    return distinct <= h.integer("lambda")
  }
  static func remember<T: Real>(_ late: Vector<T>, _ answered: Vector<T>, _ h: Hyper, time: Int) {
    let n = answered.count, row = late.row(time % (h.integer("W") - 1))
    for i in 0..<n { row.p[i] = answered.p[i] == 0 ? 1 : 0 }
  }
}

/// Sequential gradient coding by selective repetition: a job that too many workers missed goes to some of them again.
///
///     s = ⌈B·lambda/(W − 1 + B)⌉;   round t: all workers get job t, but where v > s results of job t − B are missing
///     the first v − s workers that miss it get that one again
///     job t − B is decodable with n − s results, by a `gradient_code` of s;   load (s + 1)/n
///
/// Ends     converged: all jobs are decodable B rounds after their own; infeasible: some is not.
/// Differs  jobs and rounds are counted from 0.
/// Source   Krishnan, Ebrahimi and Khisti, 2022, arXiv:2211.13802.
struct SRSGC: Driver {
  static let method = Method.solver(
    "sr_sgc", "Sequential gradient coding by selective repetition.",
    rule: """
      s = ceil(B lambda/(W - 1 + B));  round t: job t, or job t - B again for the first v - s workers that miss it
      decodable with n - s results
      """,
    source: "Krishnan, Ebrahimi, Khisti, 2022, arXiv:2211.13802", parameters: SequentialCode.parameters,
    inputs: SequentialCode.results, asks: [SequentialCode.round("n"), SequentialCode.wait],
    kept: [
      .kept("tasks", "n", "jobs of this round"), .kept("parts", "n", "zeros: a job has one part a worker"),
      .kept("answered", "n", "who answered"), .kept("done", "jobs, n", "results that are there"),
      .kept("late", "window, n", "who was late in the last W - 1 rounds"),
    ],
    validate: SequentialCode.validate(
      "sr_sgc", { b, w in (w - 1) % b == 0 ? nil : "`B` must divide `W` - 1, got \(b) and \(w)" }))

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] { ["window": h.integer("W") - 1] }
  enum Phase: Int { case start, round, answered, take }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let tasks = try io["tasks"], answered = try io["answered"], done = try io["done"], late = try io["late"]
    let decoded = try io["decoded"], n = tasks.count, jobs = done.rows, B = h.integer("B")
    let s = (B * h.integer("lambda") + h.integer("W") + B - 2) / (h.integer("W") - 1 + B)
    let time = try io.count("iterations", jobs &+ B)
    func missing(_ job: Int) -> [Int] { (0..<n).filter { done.p[job * n + $0] == 0 } }
    switch phase {
    case .start:
      decoded.fill(-1)
      io.load = min(1, Double(s + 1) / Double(n))
      return .go(.round)
    case .round:
      if time >= jobs + B {
        return .done((0..<jobs).allSatisfy { decoded.p[$0] >= 0 } ? .converged : .infeasible)
      }
      tasks.fill(time < jobs ? Double(time) : -1)
      if time >= B {
        let those = missing(time - B)
        for i in those.prefix(max(0, those.count - s)) { tasks.p[i] = T(time - B) }
      }
      io.time = Double(time)
      return .ask("round", [tasks, try io["parts"]], [answered], fresh: true, then: .answered)
    case .answered:
      return SequentialCode.waits(io, late, answered, h, time: time) ? .ask("wait", then: .take) : .go(.take)
    case .take:
      SequentialCode.remember(late, answered, h, time: time)
      for i in 0..<n where answered.p[i] != 0 && tasks.p[i] >= 0 {
        done.p[min(jobs - 1, max(0, Int(tasks.p[i]))) * n + i] = 1
      }
      for job in max(0, time - B)...max(0, min(time, jobs - 1))
      where job < jobs && decoded.p[job] < 0 && missing(job).count <= s {
        decoded.p[job] = T(time)
      }
      io.iterations += 1
      return .go(.round)
    }
  }
}

/// Multiplexed sequential gradient coding: every job in small parts over several rounds, some of them coded.
///
///     slot m = 0, ..., W − 2 + B of round t works on job t − m;  of every worker a job has W − 1 parts that are not
///     coded, and B groups, each a gradient code against lambda late ones
///     slots below W − 1: the next part;  later ones: part again while some is missing, else group m − (W − 1)
///     decodable when every worker has delivered its parts, and of every group n − lambda have
///     load = (lambda + 1)(W − 1 + B)/(n·(B + (W − 1)(lambda + 1)));  for lambda = n  (W − 1 + B)/(n·(W − 1))
///
/// parts of a task: 0, ..., W − 2 of those not coded, W − 1, ..., W − 2 + B of the groups. All tasks of a worker come
/// with its answer.
/// Ends     converged: all jobs are decodable W − 2 + B rounds after their own; infeasible: some is not.
/// Differs  jobs and rounds are counted from 0.
/// Source   Krishnan, Ebrahimi and Khisti, 2022, arXiv:2211.13802.
struct MSGC: Driver {
  static let method = Method.solver(
    "m_sgc", "Multiplexed sequential gradient coding.",
    rule: """
      slot m of round t works on job t - m: the next of W - 1 parts, then group m - (W - 1)
      decodable when all workers delivered W - 1 parts and n - lambda every one of B groups
      """,
    source: "Krishnan, Ebrahimi, Khisti, 2022, arXiv:2211.13802", parameters: SequentialCode.parameters,
    inputs: SequentialCode.results, asks: [SequentialCode.round("slots, n"), SequentialCode.wait],
    kept: [
      .kept("tasks", "slots, n", "jobs of this round"), .kept("parts", "slots, n", "parts of the jobs"),
      .kept("answered", "n", "who answered"), .kept("plain", "jobs, n", "parts delivered"),
      .kept("coded", "jobs, B, n", "groups delivered"),
      .kept("late", "window, n", "who was late in the last W - 1 rounds"),
    ], validate: SequentialCode.validate("m_sgc"))

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    ["window": h.integer("W") - 1, "slots": h.integer("W") - 1 + h.integer("B")]
  }
  enum Phase: Int { case start, round, answered, take }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let tasks = try io["tasks"], parts = try io["parts"], answered = try io["answered"], plain = try io["plain"]
    let coded = try io["coded"], late = try io["late"], decoded = try io["decoded"], n = answered.count
    let jobs = plain.rows, B = h.integer("B"), whole = h.integer("W") - 1, slots = whole + B
    let lambda = h.integer("lambda"), time = try io.count("iterations", jobs &+ slots)
    switch phase {
    case .start:
      decoded.fill(-1)
      let (l, w, b, all) = (Double(lambda), Double(whole), Double(B), Double(n))
      io.load = lambda == n ? (w + b) / (all * w) : (l + 1) * (w + b) / (all * (b + w * (l + 1)))
      return .go(.round)
    case .round:
      if time >= jobs + slots - 1 {
        return .done((0..<jobs).allSatisfy { decoded.p[$0] >= 0 } ? .converged : .infeasible)
      }
      for m in 0..<slots {
        let job = time - m
        for i in 0..<n {
          let known = job >= 0 && job < jobs, there = known ? Double(plain.p[job * n + i]) : 0
          tasks.p[m * n + i] = known ? T(job) : -1
          parts.p[m * n + i] = !known ? -1 : m >= whole && there >= Double(whole) ? T(m) : T(there)
        }
      }
      io.time = Double(time)
      return .ask("round", [tasks, parts], [answered], fresh: true, then: .answered)
    case .answered:
      return SequentialCode.waits(io, late, answered, h, time: time) ? .ask("wait", then: .take) : .go(.take)
    case .take:
      SequentialCode.remember(late, answered, h, time: time)
      for m in 0..<slots {
        let job = time - m
        guard job >= 0, job < jobs else { continue }
        for i in 0..<n where answered.p[i] != 0 {
          if Double(parts.p[m * n + i]) < Double(whole) {
            plain.p[job * n + i] += 1
          } else {
            coded.p[(job * B + m - whole) * n + i] = 1
          }
        }
        let all = (0..<n).allSatisfy { Double(plain.p[job * n + $0]) >= Double(whole) }
        let groups = (0..<B).allSatisfy { b in
          (0..<n).count { coded.p[(job * B + b) * n + $0] != 0 } >= n - lambda
        }
        if all, groups, decoded.p[job] < 0 { decoded.p[job] = T(time) }
      }
      io.iterations += 1
      return .go(.round)
    }
  }
}
