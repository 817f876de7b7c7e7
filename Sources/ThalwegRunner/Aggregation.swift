import CThalweg
import ThalwegCore

/// An aggregator alone, on a matrix with the gradient of a task in each row: a pipeline of it and of steps of 1 from 0,
/// whose requests are answered with the rows.
final class Aggregation {
  private let node: StageNode, method: Method
  private var optimizer: Optimizer?, at: Memory?
  /// Rows, numbers in a row and whether these are doubles, as of all calls.
  private var form: [Int] = []

  init(_ text: String, _ method: Method) throws(Failure) {
    guard method.asks(for: "task_gradient") else {
      throw Failure(Status.method, "`\(method.name)` does not combine the gradients of tasks")
    }
    (node, self.method) = (try Parser.sentence(text)[0], method)
    do throws(Failure) { _ = try Optimizer(text + " | sgd(lr=1)", Options(), .current) } catch {
      // (what does not fit the standard number of tasks may fit that of the rows)
      guard error.status == tw_status(Status.range), countsRows else { throw error }
    }
  }
  var sentence: String { node.text }
  /// The sentence leaves the number of tasks to the rows.
  private var countsRows: Bool {
    let first = method.parameters.first?.name == "tasks"
    return first && !node.arguments.contains { $0.name == "tasks" || $0.name == nil }
  }
  private func pipeline(_ node: StageNode) -> String { node.text + " | sgd(lr=1)" }

  var kernels: ObjectiveKernels {
    nonisolated(unsafe) let own = self
    return ObjectiveKernels(
      inPipelines: RegularizerStages(), state: { _ in [] },
      forward32: { (_, x, cache) throws(Failure) in try own.forward(x, cache) },
      forward64: { (_, x, cache) throws(Failure) in try own.forward(x, cache) },
      pullback32: { (_, cache, name, g) throws(Failure) in try own.pullback(cache, name, g) },
      pullback64: { (_, cache, name, g) throws(Failure) in try own.pullback(cache, name, g) })
  }

  /// The pipeline for so many rows: the sentence says the number of tasks, or they do.
  private func made(_ form: [Int], _ memory: Memory) throws(Failure) -> Optimizer {
    func bound(_ node: StageNode) throws(Failure) -> Optimizer {
      var options = Options()
      options.nonFinite = .error
      let o = try Optimizer(pipeline(node), options, .current)
      try o.addParameters([try row(memory.base, form)], nil, nil)
      return o
    }
    guard countsRows else { return try bound(node) }
    func of(_ tasks: Int) throws(Failure) -> Optimizer {
      var node = node
      node.arguments.append(ArgumentNode(name: "tasks", value: .number(Double(tasks)), position: node.position))
      return try bound(node)
    }
    let o = try of(form[0])
    // (some ask for one gradient more, which is of no task)
    let more = (try o.next(loss: nil).0?.count ?? form[0]) - form[0]
    try o.cancel()
    return more == 0 ? o : try of(form[0] - more)
  }
  private func row(_ p: UnsafeMutableRawPointer, _ form: [Int]) throws(Failure) -> View {
    let shape = UnsafeMutablePointer<Int64>.allocate(capacity: 1)
    defer { shape.deallocate() }
    shape.initialize(to: Int64(form[1]))
    var t = tw_tensor()
    (t.data, t.dtype, t.ndim) = (p, form[2] == 1 ? DType.f64.rawValue : DType.f32.rawValue, 1)
    t.shape = UnsafePointer(shape)
    return try View(t, "a row")
  }

  /// The length of the combined gradient; what a call remembers counts when it succeeds.
  private func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let J = try x["J"], tasks = x.sizes["tasks"], n = x.sizes["n"], form = [tasks, n, T.isDouble ? 1 : 0]
    guard tasks > 0 else { throw Failure(Status.count, "`J` must have a row for each task, got none") }
    guard self.form.isEmpty || self.form == form else {
      throw Failure(
        Status.shape,
        "`J` was \(Aggregation.words(self.form)) in earlier calls, which are remembered, "
          + "got \(Aggregation.words(form))")
    }
    let memory: Memory, o: Optimizer
    if let at, let optimizer {
      (memory, o) = (at, optimizer)
    } else {
      memory = try Memory(max(1, n) * MemoryLayout<T>.stride, .current)
      o = try made(form, memory)
    }
    let g = memory.base.bindMemory(to: T.self, capacity: max(1, n))
    for i in 0..<n { g[i] = 0 }
    let looks = o.sources.contains { $0.source?.observes.contains("loss_0") ?? false }
    guard looks == (x.optional("losses") != nil) else {
      if looks { throw Failure(Status.needs, "it needs `losses`, one of each task") }
      throw Failure(Status.argument, "it takes no `losses`")
    }
    if let losses = x.optional("losses") {
      for k in 0..<tasks { try o.observe("loss_\(k)", Double(losses[k])) }
    }
    do throws(Failure) {
      var next = try o.next(loss: nil).0
      while let request = next {
        guard request.kind == .taskGradient, request.count == tasks else {
          throw Failure(Status.count, "it is for \(request.count) tasks, `J` has \(tasks) rows")
        }
        let start = UnsafeMutableRawPointer(mutating: J + request.index * n)
        try o.bindGradients([try row(start, form)])
        next = try o.next(loss: nil, stays: true).0
      }
    } catch {
      if o.phase >= 0 { try o.cancel() }
      throw error
    }
    (optimizer, at, self.form) = (o, memory, form)
    var sum = 0.0
    for i in 0..<n {
      g[i] = 0 - g[i]
      sum += Double(g[i]) * Double(g[i])
    }
    if let cache { try keep(cache, g, n, o) }
    return sum.squareRoot()
  }

  private func keep<T: Real>(_ cache: Cache, _ g: UnsafeMutablePointer<T>, _ n: Int, _ o: Optimizer) throws(Failure) {
    try cache.keep("gradient", n, of: UnsafePointer(g))
    if let weights = o.taskWeights {
      let out = try cache.keep("weights", weights.count, T.self)
      for (k, w) in weights.enumerated() { out[k] = T(w) }
    }
    for name in ["residual", "iterations"] {
      for s in o.sources {
        guard let k = s.scalars.firstIndex(where: { $0.name == name }) else { continue }
        try cache.keep(name, 1, T.self)[0] = T(s.globals[k])
      }
    }
  }
  private func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    guard cache.count(name) > 0 || name == "gradient" else {
      let why = name == "weights" ? "it combines entry by entry" : "it does not iterate, or does not say"
      throw Failure(Status.needs, "there is no `\(name)`: \(why)")
    }
    g.update(from: try cache.kept(name, T.self), count: cache.count(name))
  }
  private static func words(_ form: [Int]) -> String { "(\(form[0]), \(form[1])) in \(form[2] == 1 ? "f64" : "f32")" }

  // MARK: what it remembers, as numbers: the form, the bytes of a checkpoint and these

  func numbers() throws(Failure) -> [Double] {
    guard let o = optimizer else { return [] }
    var bytes: [UInt8] = []
    try Checkpoint.save(
      o, { (size) throws(Failure) in bytes.reserveCapacity(size) }, { (part) throws(Failure) in bytes += part })
    return form.map(Double.init) + [Double(bytes.count)]
      + stride(from: 0, to: bytes.count, by: 8).map { i in
        Double(bitPattern: bytes[i..<min(i + 8, bytes.count)].reversed().reduce(0) { $0 << 8 | UInt64($1) })
      }
  }
  /// false: they make no sense.
  func take(_ numbers: [Double]) throws(Failure) -> Bool {
    if numbers.isEmpty {
      (optimizer, at, form) = (nil, nil, [])
      return true
    }
    guard numbers.count >= 4, numbers.prefix(4).allSatisfy({ $0 >= 0 && $0 < 0x1p48 && $0 == $0.rounded() }),
      numbers[0] >= 1, numbers[2] <= 1
    else { return false }
    let form = numbers.prefix(3).map { Int($0) }, count = Int(numbers[3])
    let bytes = numbers.dropFirst(4).flatMap { x in
      (0..<8).map { UInt8(truncatingIfNeeded: x.bitPattern >> (8 * $0)) }
    }
    guard count <= bytes.count, bytes.count - count < 8 else { return false }
    let memory = try Memory(max(1, form[1]) * 8, .current), o = try made(form, memory)
    let file = try Memory(count, .current, zeroed: false)
    for k in 0..<count { file.base.storeBytes(of: bytes[k], toByteOffset: k, as: UInt8.self) }
    try Checkpoint.load(o, UnsafeRawBufferPointer(start: file.base, count: count))
    guard o.phase < 0, !o.evaluating else { return false }
    (optimizer, at, self.form) = (o, memory, form)
    return true
  }
}
