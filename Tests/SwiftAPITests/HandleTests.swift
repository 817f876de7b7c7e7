import Thalweg
import XCTest

/// Tensors, regularizers, sets, schedules, objectives, solvers and the registry through the public interface alone.
final class HandleTests: XCTestCase {
  func testTensors() throws {
    let t = try Tensor([1, 2, 3, 4, 5, 6] as [Float], shape: [2, 3], role: .weight)
    XCTAssertEqual([t.count, t.shape.count], [6, 2])
    XCTAssertEqual("\(t.readOnly)", "Tensor(f32, [2, 3], read-only)")
    let same = t
    try same.withUnsafeMutableBufferPointer(of: Float.self) { $0[0] = 9 }
    XCTAssertEqual(try t.values(of: Float.self), [9, 2, 3, 4, 5, 6], "copies show the same memory")
    var a = [0, 1, 2, 3, 4, 5] as [Int32]
    try a.withUnsafeMutableBufferPointer { buffer in
      let column = try Tensor(buffer, shape: [3, 2], strides: [1, 3])
      XCTAssertEqual(try column.doubles(), [0, 3, 1, 4, 2, 5])
      try column.assign([9, 8, 7, 6, 5, 4] as [Int32])
      assertError(.layout, "gaps") { try column.withUnsafeBufferPointer(of: Int32.self) { $0.count } }
    }
    XCTAssertEqual(a, [9, 7, 5, 8, 6, 4])
    let number = try Tensor(number: 2.5)
    XCTAssertEqual(number.shape, [])
    XCTAssertEqual(try number.doubles(), [2.5])
    XCTAssertEqual(try Tensor(zeros: [3, 0]).doubles(), [])
  }

  func testHostileTensors() throws {
    assertError(.shape, "dimension 1 is -1") { try Tensor(zeros: [2, -1]) }
    assertError(.shape, "overflows") { try Tensor(zeros: [Int.max, Int.max]) }
    assertError(.shape, "ndim") { try Tensor(zeros: [Int](repeating: 1, count: 100)) }
    assertError(.memory, "") { try Tensor(zeros: [1 << 47], dtype: .f64) }
    assertError(.count, "has 6 elements, the buffer has 5") { try Tensor([1.0, 2, 3, 4, 5], shape: [2, 3]) }
    let t = try Tensor([1.0, 2])
    assertError(.dtype, "f64") { try t.values(of: Float.self) }
    assertError(.count, "got 3") { try t.assign([1.0, 2, 3]) }
    assertError(.layout, "read-only") { try t.readOnly.assign([1.0, 2]) }
    assertError(.layout, "read-only") { try t.readOnly.withUnsafeMutableBufferPointer(of: Double.self) { $0.count } }
    assertError(.argument, "its buffer is nil but") {
      try Tensor(UnsafeMutableBufferPointer<Float>(start: nil, count: 0), shape: [2], strides: [1])
    }
    var a = [Float](repeating: 0, count: 6)
    try a.withUnsafeMutableBufferPointer { buffer in
      assertError(.count, "reaches out") { try Tensor(buffer, shape: [3], strides: [3]) }
      assertError(.count, "reaches out") { try Tensor(buffer, shape: [2], strides: [-1]) }
      assertError(.count, "reaches out") { try Tensor(buffer, shape: [4], offset: 3) }
      assertError(.shape, "strides") { try Tensor(buffer, shape: [2, 3], strides: [1]) }
      assertError(.shape, "overflow") { try Tensor(buffer, shape: [3], strides: [Int.max]) }
      assertError(.range, "offset") { try Tensor(buffer, offset: -1) }
      assertError(.range, "offset") { try Tensor(buffer, offset: .max) }
      let raw = UnsafeMutableRawBufferPointer(buffer)
      assertError(.count, "whole number") {
        try Tensor(UnsafeMutableRawBufferPointer(rebasing: raw[..<7]), dtype: .f32)
      }
      assertError(.layout, "aligned") { try Tensor(UnsafeRawBufferPointer(rebasing: raw[1..<9]), dtype: .f32) }
      XCTAssertEqual(try Tensor(UnsafeBufferPointer(buffer), shape: [2], offset: 4).isReadOnly, true)
    }
  }

  func testRegularizers() throws {
    let l1 = try Regularizer("l1(0.5)"), w = try Tensor([2.0, -0.1, -3]), g = try Tensor([1.0, 1, 1])
    XCTAssertEqual(try l1.value(at: w), 2.55, accuracy: 1e-15)
    try l1.addGradient(at: w, to: g, scale: 2)
    XCTAssertEqual(try g.doubles(), [2, 0, 0])
    try l1.prox(w, step: 1)
    XCTAssertEqual(try w.doubles(), [1.5, 0, -2.5])
    try l1.prox(w, steps: try Tensor([0.0, 1, 2]))
    XCTAssertEqual(try w.doubles(), [1.5, 0, -1.5])
    assertError(.range, "element 1") { try l1.prox(w, steps: try Tensor([0.0, -1, 2])) }
    assertError(.unsupported, "one another") { try Regularizer("group_lasso").prox(w, steps: try Tensor([0.0, 1, 2])) }
    assertError(.range, "`t`") { try l1.prox(w, step: -1) }
    assertError(.range, "`scale`") { try l1.addGradient(at: w, to: g, scale: .nan) }
    assertError(.shape, "differ") { try l1.addGradient(at: w, to: try Tensor([1.0])) }
    assertError(.layout, "read-only") { try l1.prox(w.readOnly, step: 1) }
    assertError(.syntax, "one regularizer") { try Regularizer("l1(1) | l1(1)") }
    assertError(.method, "") { try Regularizer("adamw") }
    let smooth = try Regularizer("laplacian_smoothness")
    assertError(.needs, "") { try smooth.value(at: try Tensor([1.0, 2], shape: [2, 1])) }
    assertError(.name, "it has") { try smooth.value(at: ["nothing": w]) }
    XCTAssertGreaterThan(smooth.inputs.count, 1)
  }

  func testSets() throws {
    let simplex = try Constraint("simplex"), w = try Tensor([2.0, 1, 1]), s = try Tensor([0.0, 0, 0])
    try simplex.minimize(w, into: s)
    XCTAssertEqual(try s.doubles(), [0, 1, 0])
    try simplex.project(w)
    XCTAssertEqual(try w.doubles().reduce(0, +), 1, accuracy: 1e-15)
    assertError(.unsupported, "manifold") { try simplex.tangent(s, at: w) }
    let sphere = try Constraint("sphere"), x = try Tensor([1.0, 0]), u = try Tensor([3.0, 4])
    try sphere.tangent(u, at: x)
    XCTAssertEqual(try u.doubles(), [0, 4])
    try sphere.retract(x, along: u)
    XCTAssertEqual(try x.doubles().reduce(0) { $0 + $1 * $1 }, 1, accuracy: 1e-12)
    assertError(.shape, "differ") { try sphere.retract(x, along: w) }
    let a = try Tensor([1.0, 0]), b = try Tensor([1.0, 0]), t = try Tensor([0.5, 2])
    XCTAssertEqual(try sphere.tangentErrors(of: t, at: a), [0.5])
    try sphere.projectTangent(t, at: a)
    XCTAssertEqual(try sphere.inner(t, t, at: a), [4])
    try sphere.exponential(b, along: t)
    XCTAssertEqual(try sphere.distances(from: a, to: b)[0], 2, accuracy: 1e-15)
    try sphere.logarithm(of: b, at: a, into: u)
    XCTAssertEqual(try u.doubles()[1], 2, accuracy: 1e-15)
    try sphere.transport(u, from: a, to: b)
    XCTAssertLessThan(try sphere.tangentErrors(of: u, at: b)[0], 1e-15)
    XCTAssertEqual(try sphere.pointErrors(of: a), [0])
    XCTAssertEqual(try Constraint("oblique").pointAxes(of: try Tensor([1.0, 0], shape: [2, 1])), 1)
    assertError(.unsupported, "no closed form") {
      _ = try Constraint("stiefel").distances(
        from: try Tensor([1.0, 0], shape: [2, 1]), to: try Tensor([1.0, 0], shape: [2, 1]))
    }
  }

  func testSchedules() throws {
    let s = try Schedule("wsd(lr=1, warmup_steps=2, stable_steps=100, decay_steps=10)")
    XCTAssertEqual([try s.value(at: 1), try s.value(at: 50)], [0.5, 1])
    try s.run("begin_decay")
    XCTAssertEqual(try s.value(at: 60), 0)
    let again = try Schedule("wsd(lr=1, warmup_steps=2, stable_steps=100, decay_steps=10)")
    try again.load(s.save())
    XCTAssertEqual(try again.value(at: 60), 0)
    XCTAssertEqual(try Schedule(s.sentence).value(at: 60), 0)
    assertError(.range, "at least 0") { try s.value(at: -1) }
    assertError(.range, "2^53") { try s.value(at: .max) }
    assertError(.name, "watch") { try s.observe("metric", 1) }
    assertError(.format, "") { try s.load([1, 2, 3]) }
    assertError(.shape, "two axes") { try s.observe(samples: try Tensor([1.0])) }
  }

  func testObjectives() throws {
    let loss = try Objective("softmax_cross_entropy"), labels = try Tensor([0, 1] as [Int])
    let z = try Tensor([1.0, 0, 0, 1], shape: [2, 2])
    let pass = try loss.forward(["z": z, "y": labels]), p = 1 / (1 + exp(1.0))
    XCTAssertEqual(pass.value, log(1 + exp(-1.0)), accuracy: 1e-12)
    XCTAssertEqual(try loss.value(["z": z, "y": labels]), pass.value)
    for (a, b) in zip(try pass.gradient(of: "z").doubles(), [-p / 2, p / 2, p / 2, -p / 2]) {
      XCTAssertEqual(a, b, accuracy: 1e-12)
    }
    let sum = try Tensor([1.0, 1, 1, 1], shape: [2, 2])
    try pass.pullback(into: ["z": sum], scale: 2)
    XCTAssertEqual(try sum.doubles()[0], 1 - p, accuracy: 1e-12)
    assertError(.needs, "z") { try loss.value(["y": labels]) }
    assertError(.name, "logits") { try loss.value(["logits": z]) }
    assertError(.argument, "constant") { try pass.pullback(into: ["y": try Tensor([0.0, 0])]) }
    assertError(.name, "no tensor `x`") { try pass.gradient(of: "x") }
    assertError(.needs, "t") { try pass.gradient(of: "t") }
    assertError(.range, "finite") { try pass.pullback(into: ["z": sum], scale: .nan) }
    assertError(.shape, "") { try pass.pullback(into: ["z": try Tensor([0.0])]) }
    assertError(.dtype, "real") { try loss.value(["z": labels, "y": labels]) }

    let rank = try Objective("effective_rank")
    let found = try rank.forward(["x": try Tensor([2.0, 0, 0, 2], shape: [2, 2])])
    XCTAssertEqual(try found.gradient(of: "stable").doubles()[0], 2, accuracy: 1e-12)

    // what is remembered is saved
    let dwa = try Objective("dwa"), other = try Objective("dwa")
    func weights(_ o: Objective, _ losses: [Double]) throws -> [Double] {
      try o.forward(["losses": try Tensor(losses)]).gradient(of: "weights").doubles()
    }
    _ = try weights(dwa, [1, 1])
    _ = try weights(dwa, [0.5, 0.9])
    try other.load(dwa.save())
    let both = [try weights(dwa, [0.4, 0.8]), try weights(other, [0.4, 0.8])]
    XCTAssertEqual(both[0], both[1])
    XCTAssertNotEqual(both[0][0], 1)
  }

  func testSolvers() throws {
    let a = [4.0, 1, 1, 3], b = try Tensor([1.0, 2])
    func product(_ request: Solver.Request) throws {
      XCTAssertEqual(request.name, "product")
      let v: [Double] = try request.tensor("vector").values()
      try request.tensor("product").assign([a[0] * v[0] + a[1] * v[1], a[2] * v[0] + a[3] * v[1]])
    }
    let cg = try Solver("cg(rtol=1e-12)")
    XCTAssertEqual(try cg.run(["b": b], answering: product), .converged)
    let x = try cg.result("x").doubles()
    XCTAssertEqual(x[0], 1 / 11, accuracy: 1e-12)
    XCTAssertEqual(x[1], 7 / 11, accuracy: 1e-12)
    XCTAssertEqual(try cg.number("iterations"), 2)

    // saved and copied at a request, with the same bits
    let first = try Solver("cg(rtol=1e-12)")
    try first.begin(["b": b])
    try product(try XCTUnwrap(try first.next()))
    let waiting = try XCTUnwrap(try first.next())
    let loaded = try Solver("cg(rtol=1e-12)"), copied = try first.copy()
    try loaded.load(first.save())
    for other in [loaded, copied] {
      var request = try other.waiting()
      while let r = request {
        try product(r)
        request = try other.next()
      }
      XCTAssertEqual(try other.result("x").doubles(), x)
    }
    assertError(.layout, "read-only") { try waiting.tensor("vector").assign([1.0, 1]) }
    assertError(.name, "did you mean `vector`") { try waiting.tensor("vectr") }
    try product(waiting)
    XCTAssertNil(try first.next())
    assertError(.sequence, "ended") { try waiting.tensor("vector").doubles() }

    let golden = try Solver("golden_section(tol=1e-6)")
    try golden.run(["low": try Tensor(number: 0), "high": try Tensor(number: 4)]) { request in
      try request.answer("phi", pow(try request.number("alpha") - 1, 2))
    }
    XCTAssertEqual(try golden.number("alpha"), 1, accuracy: 1e-5)

    let fresh = try Solver("cg")
    assertError(.sequence, "begin") { try fresh.next() }
    assertError(.sequence, "begin") { try fresh.result("x") }
    assertError(.needs, "`b`") { try fresh.begin() }
    assertError(.name, "it has") { try fresh.begin(["bb": b]) }
    assertError(.name, "") { try cg.result("y") }
    assertError(.format, "") { try fresh.load([0]) }
    XCTAssertEqual(fresh.outcome, .running)
  }

  func testTheRegistry() throws {
    XCTAssertGreaterThan(Method.all.count, 500)
    let adamw = try Method.named("adamw")
    XCTAssertEqual(adamw.kind, .optimizer)
    XCTAssertTrue(adamw.parameters.contains { $0.name == "lr" && $0.isLive && $0.minimum == 0 })
    XCTAssertEqual(try Method.named("cg").requests.first?.wanted.first?.name, "product")
    XCTAssertEqual(try Method.named("effective_rank").inputs.filter(\.isResult).count, 4)
    assertError(.method, "did you mean `adamw`") { try Method.named("adamww") }
    XCTAssertEqual(Set(Method.all.map(\.kind)).count, Method.Kind.allCases.count)
    let threads = Library.threads
    assertError(.range, "threads") { try Library.set(threads: 0) }
    try Library.set(threads: threads)
    XCTAssertFalse(Library.version.isEmpty)
  }
}
