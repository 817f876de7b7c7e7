import CThalweg
import ThalwegCore

/// Numbers in dense memory of their own, for what works on whole tensors: copies of host tensors, mostly. Their size is
/// the caller's choice (a broadcast view of one number may stand for any), so that they fail with TW_ERROR_MEMORY.
package struct Dense<T: Real> {
  private let memory: Memory
  package let count: Int
  /// Valid while this value lives; zeros at first.
  package let p: UnsafeMutablePointer<T>

  package init(zeros count: Int) throws(Failure) {
    memory = try Memory(count * MemoryLayout<T>.stride, .current)
    (p, self.count) = (memory.base.bindMemory(to: T.self, capacity: count), count)
  }
  package init(_ v: View) throws(Failure) {
    memory = try Memory(v.count * MemoryLayout<T>.stride, .current, zeroed: false)
    (p, count) = (memory.base.bindMemory(to: T.self, capacity: v.count), v.count)
    let l = Layout(v)
    defer { l.release() }
    l.read(0, count, p, scale: 1)
  }
  func write(to v: View) {
    let l = Layout(v)
    defer { l.release() }
    l.write(0, v.count, p, rounding: nil)
    withExtendedLifetime(memory) {}
  }
  var hasInfinity: Bool {
    defer { withExtendedLifetime(memory) {} }
    return (0..<count).contains { p[$0].isInfinite }
  }
}

extension HostMatrix {
  /// A copy of a tensor, which must have two axes.
  package init(_ v: View, _ what: String) throws(Failure) {
    guard !v.absent else { throw Failure(Status.argument, "\(what) is marked absent; pass NULL where there is none") }
    guard v.shape.count == 2 else {
      throw Failure(Status.shape, "\(what) must have two axes, (rows, columns), got shape \(v.shape)")
    }
    try Memory.ask(v.count * MemoryLayout<Double>.stride)
    let l = Layout(v)
    defer { l.release() }
    let values = [Double](unsafeUninitializedCapacity: v.count) { (buffer, count) in
      if let p = buffer.baseAddress { l.read(0, v.count, p, scale: 1) }
      count = v.count
    }
    self.init(values, v.shape[0], v.shape[1])
  }
}

extension View {
  /// One tensor that a call reads, or writes in place.
  ///
  /// Throws TW_ERROR_ARGUMENT where it is absent; where it is to be written, TW_ERROR_LAYOUT when it is read-only and
  /// TW_ERROR_OVERLAP when its elements share memory.
  package init(argument t: tw_tensor, _ name: String, writable: Bool) throws(Failure) {
    try self.init(t, name)
    guard !absent else { throw Failure(Status.argument, "\(name): the tensor is marked absent") }
    if writable {
      guard !readOnly else { throw Failure(Status.layout, "\(name) is read-only") }
      try refuseOverlapWithin(name, Status.overlap)
    }
  }
}
func same(_ a: View, _ b: View, _ names: String) throws(Failure) {
  guard a.shape == b.shape else { throw Failure(Status.shape, "\(names) differ in shape: \(a.shape) and \(b.shape)") }
}

/// Reads a sentence that must be one stage.
func single(_ text: String, _ kind: Method.Kind, or others: [Method.Kind] = []) throws(Failure) -> (Registered, Hyper) {
  let nodes = try Parser.sentence(text)
  guard nodes.count == 1 else {
    throw Failure(
      Status.syntax,
      "one \(kind.rawValue) is expected, got \(nodes.count) stages" + Parser.pointer(text, nodes[1].position))
  }
  let named = Registry.find(nodes[0].name)?.kind
  do { return try Registry.component(nodes[0], named.flatMap { others.contains($0) ? $0 : nil } ?? kind) } catch {
    throw Failure(
      Int(error.status),
      error.message.contains("\n")
        ? error.message : error.message + Parser.pointer(text, error.position ?? nodes[0].position))
  }
}

package final class RegularizerObject {
  /// A function of the weights alone, or of the weights and further inputs. (Indirect: copies of large payloads branch
  /// on their padding.)
  private indirect enum Work {
    case plain(RegularizerKernels)
    case informed(Evaluation)
  }
  private let hyper: Hyper
  private let work: Work
  package let inputs: [Input]

  package init(_ text: String) throws(Failure) {
    let (e, h) = try single(text, .regularizer)
    (hyper, inputs) = (h, e.method.inputs)
    switch e.component {
    case .regularizer(let k): work = .plain(k)
    case .objective(let k): work = .informed(Evaluation(e.method, h, k))
    default: throw Failure(Status.internal, "not a regularizer")
    }
  }

  /// The weights, first of the inputs.
  private func weights(_ tensors: [Operand?]) throws(Failure) -> View {
    guard tensors.count == 1 else {
      throw Failure(Status.count, "this regularizer takes the weights alone, got \(tensors.count) tensors")
    }
    guard let w = tensors[0], w.integers == nil else {
      throw Failure(Status.argument, "the weights must be real numbers, and not absent")
    }
    return w.view
  }
  package func value(_ tensors: [Operand?]) throws(Failure) -> Double {
    switch work {
    case .plain(let kernels): try value(kernels, weights(tensors))
    case .informed(let e): try e.forward(tensors, keeps: false).value
    }
  }
  /// g += scale · gradient with respect to the weights.
  package func addGradient(_ tensors: [Operand?], _ scale: Double, _ g: View) throws(Failure) {
    guard scale.isFinite else { throw Failure(Status.range, "`scale` must be finite, got \(scale)") }
    switch work {
    case .plain(let kernels):
      let w = try weights(tensors)
      try same(w, g, "w and g")
      try addGradient(kernels, w, scale, g)
    case .informed(let e):
      guard let cache = try e.forward(tensors, keeps: true).cache else { return }
      try e.pullback(cache, scale, [g])
    }
  }

  private func value(_ kernels: RegularizerKernels, _ w: View) throws(Failure) -> Double {
    guard w.count > 0 else { return 0 }
    let shape = Shape(dimensions: w.shape, role: w.role)
    try kernels.penalty(hyper).1?.accepts(hyper, shape)
    func tensor<T: Real>(_ x: Dense<T>) -> Whole<T> {
      Whole(v: x.p, w: x.p, slots: [], shape: shape, workspace: UnsafeMutableRawPointer(x.p))
    }
    if w.dtype == .f64 {
      let x = try Dense<Double>(w)
      defer { withExtendedLifetime(x) {} }
      return try kernels.value64(hyper, tensor(x))
    }
    let x = try Dense<Float>(w)
    defer { withExtendedLifetime(x) {} }
    return try kernels.value32(hyper, tensor(x))
  }

  /// g += scale · gradient(w).
  private func addGradient(_ kernels: RegularizerKernels, _ w: View, _ scale: Double, _ g: View) throws(Failure) {
    guard w.count > 0 else { return }
    if g.dtype == .f64 { try add(kernels, w, scale, g, Double.self) } else { try add(kernels, w, scale, g, Float.self) }
  }
  private func add<T: Real>(_ kernels: RegularizerKernels, _ w: View, _ scale: Double, _ g: View, _: T.Type)
    throws(Failure)
  {
    let pair = kernels.penalty(hyper), shape = Shape(dimensions: w.shape, role: w.role)
    if let e = pair.0, Shares(g, w) == .nothing {
      return try ElementWork<T>(e, hyper, shape, t: 0).add(T(scale), at: w, to: g)
    }
    // one that cannot fail adds to what lies there
    if scale == 1, let whole = pair.1, !whole.mayFail(hyper), Shares(g, w) == .nothing, let out = plain(g, T.self),
      let x = plain(w, T.self)
    {
      return try runOnce(pair, hyper, out, x, shape, t: 0)
    }
    let v = try Dense<T>(zeros: w.count), out = try Dense<T>(g), x = try Dense<T>(w)
    defer { withExtendedLifetime((v, x)) {} }
    try runOnce(pair, hyper, v.p, x.p, shape, t: 0)
    for i in 0..<w.count { out.p[i] += T(scale) * v.p[i] }
    out.write(to: g)
  }

  package func prox(_ w: View, _ t: Double) throws(Failure) {
    guard t >= 0, t.isFinite else { throw Failure(Status.range, "`t` must be at least 0, got \(t)") }
    let kernels = try proximal
    guard t > 0 else { return }
    try change(kernels.proximal(hyper), hyper, w, from: w, w, t: t)
  }
  /// The same with a step for each element.
  package func prox(_ w: View, steps: View) throws(Failure) {
    guard let stepped = try proximal.stepped else {
      throw Failure(
        Status.unsupported,
        "this regularizer has no prox with a step for each element: they depend on one another")
    }
    try same(w, steps, "w and steps")
    let each = try Dense<Double>(steps)
    defer { withExtendedLifetime(each) {} }
    for i in 0..<each.count where !(each.p[i] >= 0 && each.p[i] < .infinity) {
      throw Failure(Status.range, "`steps` must be finite and at least 0, got \(each.p[i]) at element \(i)")
    }
    try change(stepped(hyper), hyper, w, from: w, steps)
  }
  private var proximal: RegularizerKernels {
    get throws(Failure) {
      guard case .plain(let kernels) = work, kernels.hasProx else {
        throw Failure(Status.unsupported, "this regularizer has no prox")
      }
      return kernels
    }
  }
}

package final class ConstraintObject {
  let hyper: Hyper
  let kernels: ConstraintKernels

  package init(_ text: String) throws(Failure) {
    let (e, h) = try single(text, .constraint)
    guard case .constraint(let k) = e.component else { throw Failure(Status.internal, "not a constraint") }
    (hyper, kernels) = (h, k)
  }

  package func project(_ w: View) throws(Failure) { try change(kernels.projection(hyper), hyper, w, from: w, w) }

  package func minimise(_ g: View, _ s: View) throws(Failure) {
    try same(g, s, "g and s")
    try change(kernels.minimise(hyper), hyper, s, from: g, g, bounded: true)
  }

}

package final class ScheduleObject {
  private let name: String
  private let hyper: Hyper
  private var schedule: any Schedule
  private var last = 0.0

  package init(_ text: String) throws(Failure) {
    let (e, h) = try single(text, .schedule)
    (name, hyper) = (e.method.name, h)
    let nodes = try Parser.sentence(text)
    do { schedule = try Registry.schedule(nodes[0]) } catch {
      throw Failure(
        Int(error.status),
        error.message.contains("\n") ? error.message : error.message + Parser.pointer(text, error.position ?? 0))
    }
  }

  /// The schedule as a sentence that goes on from what it remembers.
  package var sentence: String {
    let memory = schedule.memory, text = hyper.sentence(name)
    guard let fresh = try? Registry.schedule(hyper.node(name, hyper.parameters)), fresh.memory != memory else {
      return text
    }
    return text.dropLast() + ", memory=[" + memory.map { ThalwegCore.text($0) }.joined(separator: ", ") + "])"
  }

  package func save() -> [UInt8] {
    SavedNumbers(mark: SavedNumbers.schedule, text: hyper.sentence(name), first: last, numbers: schedule.memory).bytes
  }
  package func load(_ data: UnsafeRawBufferPointer) throws(Failure) {
    let saved = try SavedNumbers(data, mark: SavedNumbers.schedule, of: "schedule", hyper.sentence(name))
    guard schedule.takes(saved.numbers[...]) == saved.numbers.count, saved.first >= 0, saved.first < 0x1p53 else {
      throw SavedNumbers.damaged("schedule", "its numbers make no sense")
    }
    schedule.memory = saved.numbers
    last = saved.first
  }

  package func value(_ step: Int64) throws(Failure) -> Double {
    guard step >= 0 else { throw Failure(Status.range, "`step` must be at least 0, got \(step)") }
    guard step < 1 << 53 else { throw Failure(Status.range, "`step` must be below 2^53, got \(step)") }
    last = Double(step)
    return schedule.value(last)
  }
  package func observe(_ what: String, _ x: Double) throws(Failure) {
    guard try schedule.observe(what, x) else { throw Failure(Status.name, "this schedule does not watch `\(what)`") }
  }
  /// Per-sample gradients, (samples, n).
  package func observe(samples v: View) throws(Failure) {
    guard v.shape.count == 2 else {
      throw Failure(Status.shape, "gradients must have two axes, (samples, n), got shape \(v.shape)")
    }
    var s = schedule
    let samples = try Dense<Double>(v)
    defer { withExtendedLifetime(samples) {} }
    guard try s.observe(samples: samples.p, v.shape[0], v.shape[1]) else {
      throw Failure(Status.name, "this schedule does not watch per-sample gradients")
    }
    schedule = s
  }
  package func command(_ name: String) throws(Failure) {
    guard schedule.command(name, at: last) else { throw Failure(Status.name, "this schedule has no command `\(name)`") }
  }
}

extension Registry {
  /// Throws TW_ERROR_METHOD with the nearest name where there is none of this one.
  package static func described(_ name: String) throws(Failure) -> Registered {
    guard let r = entry(name) else {
      throw Failure(Status.method, "no method `\(name.prefix(64))`" + suggestion(name, names()))
    }
    return r
  }
}

extension Registered {
  /// What a name stands for when it is made of others, with the default hyper-parameters.
  package var sentence: String {
    guard case .sentence(let expand) = component,
      let h = try? method.read(StageNode(name: method.name, arguments: [], position: 0))
    else { return "" }
    return expand(h).map(\.text).joined(separator: " | ")
  }
}

extension Method {
  /// The requests without the engine's own marks.
  package var publicRequests: String {
    requests.split(separator: ",").map { $0.drop { $0 == " " } }.filter {
      !["own-step", "no-updates", "applier"].contains($0)
    }.joined(
      separator: ", ")
  }
}

extension Optimizer {
  /// The probes of a waiting Hessian-vector request, shaped like the parameters; nil when none is wanted.
  package func probeTensors() -> UnsafeMutablePointer<tw_tensor>? {
    guard let (stage, slot) = probeSlot else { return nil }
    return probes(stage, slot)
  }
}
