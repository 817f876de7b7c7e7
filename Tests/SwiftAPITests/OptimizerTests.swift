import Thalweg
import XCTest

/// Optimizers through the public interface alone.
final class OptimizerTests: XCTestCase {
  /// An optimizer of one parameter and its gradient, in f64.
  private func made(_ sentence: String, _ start: [Double], options: Optimizer.Options = .init()) throws
    -> (optimizer: Optimizer, w: Tensor, g: Tensor)
  {
    let w = try Tensor(start), g = try Tensor(zeros: [start.count], dtype: .f64)
    let o = try Optimizer(sentence, options: options)
    try o.add(parameters: [w], names: ["w"])
    try o.bind(gradients: [g])
    return (o, w, g)
  }
  /// Half the squared distance from (1, 2, 3) with curvatures 1, 2, 3: its gradient.
  private func gradient(_ w: [Double]) -> [Double] { w.enumerated().map { Double($0 + 1) * ($1 - Double($0 + 1)) } }
  private func loss(_ w: [Double]) -> Double {
    w.enumerated().reduce(0) { $0 + 0.5 * Double($1.offset + 1) * pow($1.element - Double($1.offset + 1), 2) }
  }
  private func assertNear(_ a: [Double], _ b: [Double], _ tolerance: Double, line: UInt = #line) {
    XCTAssertEqual(a.count, b.count, line: line)
    for (x, y) in zip(a, b) { XCTAssertEqual(x, y, accuracy: tolerance, line: line) }
  }

  func testStepsAreThoseOfAHandWrittenLoop() throws {
    let (o, w, g) = try made("adamw(lr=0.01, weight_decay=0.1)", [4, -1, 0.5])
    var x = [4, -1, 0.5], m = [0.0, 0, 0], v = [0.0, 0, 0]
    for t in 1...20 {
      try g.assign(gradient(w.values()))
      XCTAssertEqual(try o.step(), .done)
      let d = gradient(x)
      for i in x.indices {
        m[i] = 0.9 * m[i] + 0.1 * d[i]
        v[i] = 0.999 * v[i] + 0.001 * d[i] * d[i]
        x[i] -= 0.01 * 0.1 * x[i]
        x[i] -= 0.01 * (m[i] / (1 - pow(0.9, Double(t)))) / ((v[i] / (1 - pow(0.999, Double(t)))).squareRoot() + 1e-8)
      }
    }
    assertNear(try w.values(), x, 1e-12)
    XCTAssertEqual(o.steps, 20)
  }

  func testArraysAreChangedInPlace() throws {
    var w: [Float] = [1, 2, 3]
    let g: [Float] = [1, 1, 1]
    let o = try Optimizer("sgd(lr=0.5)")
    try Tensor.with(&w) { w in
      try o.add(parameters: [w])
      try o.step(gradients: [try Tensor(g)])
    }
    XCTAssertEqual(w, [0.5, 1.5, 2.5])
    try Tensor.with(&w) { w in
      try o.rebind(parameters: [w])
      try o.step(gradients: [try Tensor(g)])
    }
    XCTAssertEqual(w, [0, 1, 2])
  }

  func testDTypesAndStrides() throws {
    var storage: [Float16] = [1, 9, 2, 9, 3, 9]
    try storage.withUnsafeMutableBufferPointer { buffer in
      let w = try Tensor(buffer, shape: [3], strides: [-2], offset: 4)
      XCTAssertEqual(try w.values(of: Float16.self), [3, 2, 1])
      let o = try Optimizer("sgd(lr=1)")
      try o.add(parameters: [w])
      try o.step(gradients: [try Tensor([0.5, 0, 0] as [Float])])
    }
    XCTAssertEqual(storage, [1, 9, 2, 9, 2.5, 9])
    let b = try Tensor(zeros: [2], dtype: .bf16)
    XCTAssertEqual(try b.doubles(), [0, 0])
  }

  func testSAMAsksTwice() throws {
    let (o, w, g) = try made("sam(0.1) | sgd(lr=0.1)", [4, -1, 0.5])
    var tags: [UInt64] = []
    try o.step { request in
      XCTAssertTrue(request.wantsGradient)
      XCTAssertEqual(request.pass, tags.count)
      tags.append(request.tag)
      try g.assign(gradient(w.values()))
    }
    XCTAssertEqual(tags.count, 2)
    XCTAssertEqual(tags.first, tags.last, "both on one minibatch")
    let start = [4, -1, 0.5], d = gradient(start), norm = d.reduce(0) { $0 + $1 * $1 }.squareRoot()
    let there = gradient(zip(start, d).map { $0 + 0.1 * $1 / norm })
    assertNear(try w.values(), zip(start, there).map { $0 - 0.1 * $1 }, 1e-10)

    let (by, v, h) = try made("sam(0.1) | sgd(lr=0.1)", start)
    while let request = try by.next() {
      XCTAssertEqual(request.kind, .gradient)
      try h.assign(gradient(v.values()))
    }
    XCTAssertEqual(try v.values(of: Double.self), try w.values(of: Double.self))
  }

  func testClosuresThatReturnTheLoss() throws {
    let (o, w, g) = try made("polyak_sgd", [4, -1, 0.5])
    for _ in 0..<200 {
      try o.step { () -> Double in
        let x: [Double] = try w.values()
        try g.assign(gradient(x))
        return loss(x)
      }
    }
    assertNear(try w.values(), [1, 2, 3], 1e-3)
  }

  func testHessianProducts() throws {
    let (o, w, g) = try made("oasis", [4, -1, 0.5])
    var kinds: Set<Optimizer.Request.Kind> = []
    var kept: Optimizer.Request?
    try o.step { request in
      kinds.insert(request.kind)
      if request.kind == .hessianVector {
        let v: [Double] = try request.probe[0].values()
        try g.assign(v.enumerated().map { Double($0 + 1) * $1 })
        kept = request
      } else {
        try g.assign(gradient(w.values()))
      }
    }
    XCTAssertTrue(kinds.contains(.hessianVector))
    let probe = try XCTUnwrap(kept).probe[0]
    assertError(.sequence, "has ended") { try probe.values(of: Double.self) }
  }

  func testABrokenStepIsTakenBack() throws {
    struct Stop: Error {}
    let (o, w, g) = try made("sam(0.1) | sgd(lr=0.1)", [4, -1, 0.5])
    XCTAssertThrowsError(
      try o.step { request in
        if request.pass == 1 { throw Stop() }
        try g.assign(gradient(w.values()))
      }
    ) { XCTAssertTrue($0 is Stop) }
    XCTAssertEqual(try w.values(of: Double.self), [4, -1, 0.5])
    XCTAssertNil(try o.waiting())
    // an optimizer that dies within a step leaves the parameters as they were
    var p: [Double] = [1, 1]
    try Tensor.with(&p) { t in
      let dies = try Optimizer("sam(0.1) | sgd(lr=0.1)"), d = try Tensor([1.0, 1.0])
      try dies.add(parameters: [t])
      try dies.bind(gradients: [d])
      _ = try dies.next()
      _ = try dies.next()
      XCTAssertNotEqual(try t.values(of: Double.self), [1, 1])
    }
    XCTAssertEqual(p, [1, 1])
  }

  func testMemoryThatIsGoneIsNotTouched() throws {
    let o = try Optimizer("sam(0.1) | sgd(lr=0.1)"), g = try Tensor([1.0, 1.0])
    var p: [Double] = [1, 1], kept: Tensor?
    try Tensor.with(&p) { t in
      kept = t
      try o.add(parameters: [t])
      try o.bind(gradients: [g])
      _ = try o.next()
      _ = try o.next()  // the parameters are elsewhere now
    }
    XCTAssertEqual(p, [1, 1], "the end of the scope takes the step back")
    assertError(.sequence, "scope") { try o.next() }
    assertError(.sequence, "scope") { try o.save() }
    assertError(.sequence, "ended") { try XCTUnwrap(kept).values(of: Double.self) }
    let moved = try Tensor([1.0, 1.0])
    try o.rebind(parameters: [moved])
    while try o.next() != nil {}
    assertNear(try moved.values(), [0.9, 0.9], 1e-12)
  }

  func testGroups() throws {
    let a = try Tensor([1.0]), b = try Tensor([1.0])
    let o = try Optimizer("sgd(lr=0.1)")
    try o.add(parameters: [a], names: ["a"])
    try o.add(parameters: [b], names: ["b"], group: "head", values: ["lr": 0.5, "momentum": "0.9"])
    try o.step(gradients: [try Tensor([1.0]), try Tensor([1.0])])
    XCTAssertEqual(try a.doubles() + b.doubles(), [0.9, 0.5])
    XCTAssertEqual(try o.number("lr", in: "head"), 0.5)
    XCTAssertEqual(try o.number("sgd.lr"), 0.1)
    try o.set("lr", to: 0.25, in: "head")
    try o.set("lr", to: "cosine(lr=0.3, total=10)", in: .standard)
    XCTAssertEqual(try o.number("lr", in: "head"), 0.25)
    XCTAssertTrue(try o.text("lr").hasPrefix("cosine("))
    try o.set(["lr": 0.2])
    XCTAssertEqual(try [o.number("lr"), o.number("lr", in: "head")], [0.2, 0.2])
    // all or nothing
    assertError(.range, "momentum") { try o.set(["lr": 0.7, "momentum": -3]) }
    XCTAssertEqual(try o.number("lr"), 0.2)
    XCTAssertEqual(try Optimizer(o.sentence).sentence, o.sentence)
  }

  func testATensorWithoutAGradientStays() throws {
    let a = try Tensor([1.0]), b = try Tensor([1.0])
    let o = try Optimizer("sgd(lr=0.1)")
    try o.add(parameters: [a, b])
    try o.step(gradients: [nil, try Tensor([1.0])])
    XCTAssertEqual(try a.doubles() + b.doubles(), [1, 0.9])
  }

  func testTheNonFinitePolicy() throws {
    let (o, w, g) = try made("sgd(lr=0.1)", [1], options: .init(nonFinite: .skip))
    try g.assign([Double.nan])
    XCTAssertEqual(try o.step(), .skipped)
    XCTAssertEqual(o.outcome, .skipped)
    XCTAssertEqual(try w.doubles(), [1])
    XCTAssertEqual([o.steps, o.skipped], [0, 1])
  }

  func testARunIsResumed() throws {
    let sentence = "sam(0.05) | adamw(lr=0.1) | ema(0.9)"
    func go(_ o: Optimizer, _ w: Tensor, _ g: Tensor, _ n: Int) throws {
      for _ in 0..<n { try o.step { _ in try g.assign(gradient(w.values())) } }
    }
    let (o, w, g) = try made(sentence, [4, -1, 0.5])
    try go(o, w, g, 5)
    let bytes = try o.save(), half: [Double] = try w.values()
    let path = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString).path
    defer { try? FileManager.default.removeItem(atPath: path) }
    try o.save(to: path)
    try go(o, w, g, 5)

    for fromFile in [false, true] {
      let (p, v, h) = try made(sentence, half)
      if fromFile { try p.load(from: path) } else { try p.load(bytes) }
      try go(p, v, h, 5)
      XCTAssertEqual(try v.values(of: Double.self), try w.values(of: Double.self))
    }
    // within a step: the request that waits is there again
    _ = try o.next()
    try g.assign(gradient(w.values()))
    _ = try o.next()
    let inside = try o.save()
    let (p, v, h) = try made(sentence, try w.values())
    try p.load(inside)
    XCTAssertEqual(try XCTUnwrap(try p.waiting()).pass, 1)
    XCTAssertEqual(try v.values(of: Double.self), try w.values(of: Double.self))
    for (q, x, d) in [(o, w, g), (p, v, h)] {
      try d.assign(gradient(x.values()))
      XCTAssertNil(try q.next())
    }
    XCTAssertEqual(try v.values(of: Double.self), try w.values(of: Double.self))
    XCTAssertEqual(try p.number("steps"), 11)
  }

  func testEvaluationWeights() throws {
    let (o, w, g) = try made("sgd(lr=0.1) | ema(0.5)", [1])
    try g.assign([1.0])
    for _ in 0..<3 { try o.step() }
    let training: [Double] = try w.values()
    let average = try o.averaged { () -> [Double] in
      XCTAssertFalse(o.isTraining)
      assertError(.sequence, "call train() first") { try o.step() }
      return try w.values()
    }
    XCTAssertGreaterThan(average[0], training[0])
    XCTAssertEqual(try w.values(of: Double.self), training)
    XCTAssertTrue(o.isTraining)
  }

  func testStateIsToldAndRead() throws {
    let (o, _, g) = try made("adamw(lr=0.1)", [1, 1])
    XCTAssertEqual(o.state.map(\.slot), ["exp_avg", "exp_avg_sq"])
    XCTAssertEqual(o.state.map(\.bytes), [16, 16])
    try g.assign([1.0, 2.0])
    try o.step()
    assertNear(try o.read(o.state[0]), [0.1, 0.2], 1e-15)
    let other = try made("sgd(lr=0.1)", [1])
    let row = o.state[1]
    assertError(.argument, "index") { try other.optimizer.read(row) }
  }

  func testWhatItIsTold() throws {
    let (o, _, g) = try made("gradient_accumulate(4) | sgd(lr=0.1)", [1])
    try g.assign([1.0])
    try o.step()
    XCTAssertEqual(o.steps, 0)
    try o.run("gradient_accumulate.flush")
    XCTAssertEqual(o.steps, 1)
    let (p, _, _) = try made("sgd(lr=reduce_on_plateau(lr=0.1, patience=0, factor=0.5))", [1])
    for _ in 0..<3 { try p.observe("metric", 1) }
    XCTAssertLessThan(try p.number("lr"), 0.1)
    assertError(.name, "`weather`") { try p.observe("weather", 1) }
  }

  /// What the README shows.
  func testTheReadme() throws {
    func fill(_ g: UnsafeMutableBufferPointer<Float>, _ batch: UInt64) { g.update(repeating: 1) }
    func batch(_ tag: UInt64) -> UInt64 { tag }
    let w = try Tensor(zeros: [10, 64]), g = try Tensor(zeros: [10, 64])
    let optimizer = try Optimizer("sam(0.05) | adamw(lr=1e-3) | ema(0.99)", options: .init(state: .bf16))
    try optimizer.add(parameters: [w], names: ["w"])
    try optimizer.bind(gradients: [g])
    try optimizer.step { request in
      try g.withUnsafeMutableBufferPointer(of: Float.self) { fill($0, batch(request.tag)) }
    }
    let mean = try optimizer.averaged { try w.values(of: Float.self) }
    XCTAssertEqual(mean[0], -1e-3, accuracy: 1e-5)
    var array: [Float] = [3, -0.01]
    try Tensor.with(&array) { try Regularizer("l1(0.1)").prox($0, step: 1) }
    XCTAssertEqual(array, [2.9, 0])
  }

  func testHostileArguments() throws {
    assertError(.name, "did you mean") { try Optimizer("adamw(lrr=1)") }
    assertError(.method, "did you mean `adamw`") { try Optimizer("adamww(lr=1)") }
    assertError(.syntax, "") { try Optimizer("adamw(lr=") }
    assertError(.range, "gradient_scale") { try Optimizer("sgd(lr=1)", options: .init(gradientScale: 0)) }
    let o = try Optimizer("sgd(lr=0.1)"), w = try Tensor([1.0, 2])
    assertError(.sequence, "call add(parameters:) first") { try o.step() }
    assertError(.sequence, "parameters before") { try o.bind(gradients: [w]) }
    assertError(.count, "at least one") { try o.add(parameters: []) }
    assertError(.count, "1 parameters have 2 names") { try o.add(parameters: [w], names: ["a", "b"]) }
    assertError(.layout, "read-only") { try o.add(parameters: [w.readOnly]) }
    assertError(.dtype, "got i64") { try o.add(parameters: [try Tensor([1, 2] as [Int])]) }
    assertError(.overlap, "") { try o.add(parameters: [w, w]) }
    assertError(.name, "`lrr`") { try o.add(parameters: [w], group: "new", values: ["lrr": 1]) }
    XCTAssertEqual(o.parameterCount, 0)
    try o.add(parameters: [w])
    assertError(.sequence, "call bind(gradients:) first") { try o.step() }
    assertError(.name, "group") { try o.set("lr", to: 1, in: "new") }
    assertError(.overlap, "") { try o.step(gradients: [w]) }
    assertError(.count, "expected 1 gradients") { try o.step(gradients: []) }
    assertError(.shape, "") { try o.step(gradients: [try Tensor([1.0])]) }
    assertError(.sequence, "no step") { try o.cancel() }
    assertError(.syntax, "") { try o.set("lr", to: "[1") }
    assertError(.type, "`lr`") { try o.set("lr", to: true) }
    assertError(.name, "lrr") { try o.number("lrr") }
    assertError(.range, "") { try o.set("lr", to: .infinity) }
    assertError(.format, "") { try o.load([]) }
    assertError(.format, "") { try o.load([UInt8](repeating: 255, count: 99)) }
    assertError(.file, "zero bytes") { try o.save(to: "/tmp/a\0b") }
    assertError(.file, "cannot read") { try o.load(from: "/no/such/file") }
    let g = try Tensor([1.0, 1.0])
    try o.bind(gradients: [g])
    assertError(.sequence, "by the closure") { try o.step { _ in try o.cancel() } }
    assertError(.sequence, "under way") {
      try o.step { _ in try o.step { _ in } }
    }
    let sam = try made("sam(0.1) | sgd(lr=0.1)", [1])
    assertError(.needs, "answer them: step { request in") { try sam.optimizer.step() }
    let request = try XCTUnwrap(try sam.optimizer.next())
    assertError(.sequence, "no request") { try request.answer(samples: []) }
    assertError(.argument, "nil") { try request.answer(matrices: nil) }
    try sam.optimizer.cancel()
    assertError(.sequence, "answered or gone") { try request.answer(samples: []) }
    XCTAssertEqual(try w.doubles(), [1, 2])
  }

  func testRanksAddUpTheirNorms() throws {
    // another rank with the same gradient: its squares are as many again
    let (alone, whole, g) = try made("clip_global_norm(1) | sgd(lr=1)", [0, 0, 0])
    let (half, part, h) = try made("clip_global_norm(1) | sgd(lr=1)", [0, 0, 0])
    try g.assign([3.0, 0, 4])
    try h.assign([3.0, 0, 4])
    var calls = 0
    try half.setReducer(shards: .elements) { sums, maxima in
      calls += 1
      for k in sums.indices { sums[k] *= 2 }
    }
    try alone.step()
    try half.step()
    XCTAssertGreaterThan(calls, 0)
    assertNear(try part.values(), try whole.values(of: Double.self).map { $0 / 2.0.squareRoot() }, 1e-6)

    struct Lost: Error {}
    try half.setReducer { _, _ in throw Lost() }
    let before: [Double] = try part.values()
    XCTAssertThrowsError(try half.step()) { XCTAssertEqual(($0 as? ThalwegError)?.code, .argument) }
    XCTAssertTrue(half.reducerError is Lost)
    XCTAssertEqual(try part.values(of: Double.self), before)
    try half.setReducer(nil)
    try half.step()
    let matrix = try Optimizer("muon")
    XCTAssertThrowsError(try matrix.setReducer(shards: .elements) { _, _ in })
  }

  func testGradientsThatStayAreReadWhereTheyLie() throws {
    let rows: [[Double]] = [[1, -2, 0.5], [-2, 1, 1], [0.5, 0.5, -3]]
    func combined(stay: Bool) throws -> [Double] {
      let w = try Tensor(zeros: [3], dtype: .f64), o = try Optimizer("upgrad(tasks=3) | sgd(lr=1)")
      try o.add(parameters: [w])
      while let request = try o.next() {
        try o.bind(gradients: [try Tensor(rows[request.index])])
        request.gradientsStay = stay
      }
      return try w.values()
    }
    XCTAssertEqual(try combined(stay: true), try combined(stay: false))
  }
}

/// `body` throws a ThalwegError of a code, whose message has these words.
func assertError<R>(
  _ code: ThalwegError.Code, _ words: String, file: StaticString = #filePath, line: UInt = #line, _ body: () throws -> R
) {
  XCTAssertThrowsError(try body(), file: file, line: line) { error in
    guard let e = error as? ThalwegError else { return XCTFail("\(error)", file: file, line: line) }
    XCTAssertEqual(e.code, code, e.message, file: file, line: line)
    XCTAssertTrue(words.isEmpty || e.message.contains(words), e.message, file: file, line: line)
    XCTAssertFalse(e.message.isEmpty, file: file, line: line)
  }
}
