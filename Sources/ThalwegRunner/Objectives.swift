import CThalweg
import ThalwegCore

/// An objective at work on the tensors of a host: checks, widening, narrowing.
struct Evaluation {
  let method: Method
  let hyper: Hyper
  let kernels: ObjectiveKernels
  let memory: ObjectiveMemory

  init(_ method: Method, _ hyper: Hyper, _ kernels: ObjectiveKernels) {
    (self.method, self.hyper, self.kernels) = (method, hyper, kernels)
    memory = ObjectiveMemory(kernels.state(hyper))
  }

  /// The value, and with `keeps` what its pull-backs need. `tensors` stand in the order of the declaration; missing
  /// ones at the end count as nil.
  func forward(_ tensors: [Operand?], keeps: Bool) throws(Failure) -> (value: Double, cache: Cache?) {
    guard tensors.count <= method.inputs.count else {
      throw Failure(
        Status.count,
        "\(method.name) takes at most \(method.inputs.count) tensors (\(names { _ in true })), got \(tensors.count)")
    }
    var sizes = Sizes(), list: [(Input, Operand)] = []
    for (i, input) in method.inputs.enumerated() {
      guard i < tensors.count, let operand = tensors[i] else {
        if input.optional { continue }
        throw Failure(Status.needs, "\(method.name) needs `\(input.name)` \(input.shape): \(input.meaning)")
      }
      guard !input.result else {
        throw Failure(Status.argument, "\(method.name): `\(input.name)` is written by the pull-back; it is no input")
      }
      guard input.integer || operand.integers == nil else {
        throw Failure(Status.dtype, "\(method.name): `\(input.name)` must hold real numbers; got whole ones")
      }
      do throws(Failure) { try sizes.match(input, operand.view.shape) } catch {
        throw error.of(method.name)
      }
      list.append((input, operand))
    }
    let isDouble = list.contains { !$0.0.integer && $0.1.view.dtype == .f64 }
    let cache = keeps ? Cache(sizes, isDouble: isDouble, given: Set(list.map(\.0.name))) : nil
    do throws(Failure) {
      let value = try memory.pass(sizes, given: Set(list.map(\.0.name))) { () throws(Failure) in
        let value =
          isDouble
          ? try evaluate(kernels.forward64, list, sizes, cache) : try evaluate(kernels.forward32, list, sizes, cache)
        // a pass whose gradients will be refused is not remembered
        if keeps, !memory.parts.isEmpty, !value.isFinite, method.kind == .objective { throw hasNoGradient(value) }
        return value
      }
      cache?.value = value
      return (value, cache)
    } catch { throw error.of(method.name) }
  }
  private func evaluate<T: Real>(
    _ forward: (Hyper, Inputs<T>, Cache?) throws(Failure) -> Double, _ list: [(Input, Operand)], _ sizes: Sizes,
    _ cache: Cache?
  ) throws(Failure) -> Double {
    let x = try Inputs<T>(list, sizes, memory)
    defer { withExtendedLifetime(x) {} }  // it owns what the pointers that it hands out point to
    return try forward(hyper, x, cache)
  }

  private func hasNoGradient(_ value: Double) -> Failure {
    Failure(
      Status.nonfinite, "\(method.name): its value is \(text(value)), which has no gradient; nothing was changed")
  }

  /// targets[i] += scale · gradient with respect to input i; nil where it is not wanted.
  func pullback(_ cache: Cache, _ scale: Double, _ targets: [View?]) throws(Failure) {
    guard targets.count <= method.inputs.count else {
      throw Failure(
        Status.count,
        "\(method.name) takes at most \(method.inputs.count) tensors (\(names { _ in true })), got \(targets.count)")
    }
    guard scale.isFinite else {
      throw Failure(Status.range, "the factor of the gradients must be finite, got \(text(scale))")
    }
    var list: [(Input, View)] = []
    for (input, target) in zip(method.inputs, targets) {
      guard let target else { continue }
      guard input.differentiable || input.result else {
        throw Failure(
          Status.argument,
          "\(method.name): `\(input.name)` is held constant; there are gradients of "
            + "\(names { $0.differentiable || $0.result })"
        )
      }
      guard input.result || cache.given.contains(input.name), let shape = cache.sizes.shape(input) else {
        throw Failure(
          Status.needs, "\(method.name): there is no `\(input.name)` without the optional inputs that it comes from")
      }
      guard target.shape == shape else {
        throw Failure(
          Status.shape,
          "\(method.name): the gradient of `\(input.name)` must have the shape \(shape), got \(target.shape)")
      }
      guard !target.readOnly else {
        throw Failure(Status.layout, "\(method.name): the gradient of `\(input.name)` is read-only")
      }
      try target.refuseOverlapWithin("\(method.name): the gradient of `\(input.name)`", Status.overlap)
      list.append((input, target))
    }
    try Optimizer.checkOverlap(list.map { ($0.1, $0.0.name) }, "gradients")
    guard cache.value.isFinite || list.allSatisfy({ $0.0.result }) && method.kind != .objective else {
      throw hasNoGradient(cache.value)
    }
    var gradients: [Memory] = []
    defer { withExtendedLifetime((gradients, cache)) {} }
    do throws(Failure) {
      for (input, target) in list {
        let memory = try Memory(target.count * (cache.isDouble ? 8 : 4), .current)
        if cache.isDouble {
          try kernels.pullback64(
            hyper, cache, input.name, memory.base.bindMemory(to: Double.self, capacity: target.count))
        } else {
          try kernels.pullback32(
            hyper, cache, input.name, memory.base.bindMemory(to: Float.self, capacity: target.count))
        }
        gradients.append(memory)
      }
    } catch { throw error.of(method.name) }
    for ((_, target), memory) in zip(list, gradients) {
      if cache.isDouble {
        add(memory.base.assumingMemoryBound(to: Double.self), scale, target)
      } else {
        add(memory.base.assumingMemoryBound(to: Float.self), scale, target)
      }
    }
  }

  /// target += scale·g, rounded once.
  private func add<T: Real>(_ g: UnsafePointer<T>, _ scale: Double, _ target: View) {
    let l = Layout(target), count = target.count, block = 1024
    defer { l.release() }
    withUnsafeTemporaryAllocation(of: Double.self, capacity: block) { buffer in
      guard let p = buffer.baseAddress else { return }
      var start = 0
      while start < count {
        let n = min(block, count - start)
        l.read(start, n, p, scale: 1)
        for i in 0..<n { p[i] += scale * Double(g[start + i]) }
        l.write(start, n, p, rounding: nil)
        start += n
      }
    }
  }

  private func names(_ which: (Input) -> Bool) -> String {
    method.inputs.filter(which).map { "`\($0.name)`" }.joined(separator: ", ")
  }
}

package final class ObjectiveObject {
  private let evaluation: Evaluation
  private let aggregation: Aggregation?
  private let token = Token()
  /// Says which object filled a cache.
  fileprivate final class Token {}

  /// A sentence of one objective, weighting, diagnostic or aggregator.
  package init(_ text: String) throws(Failure) {
    let nodes = try Parser.sentence(text)
    if nodes.count == 1, let method = Registry.find(nodes[0].name), method.kind == .aggregator {
      let own = try Aggregation(text, method)
      (evaluation, aggregation) = (Evaluation(method, Hyper([], []), own.kernels), own)
      return
    }
    aggregation = nil
    let (e, h) = try single(text, .objective, or: [.weighting, .diagnostic])
    guard case .objective(let k) = e.component else { throw Failure(Status.internal, "not an objective") }
    evaluation = Evaluation(e.method, h, k)
  }
  package var inputs: [Input] { evaluation.method.inputs }

  /// The value; `keep`, when given, then holds what `pullback` needs.
  package func forward(_ tensors: [Operand?], _ keep: CacheObject?) throws(Failure) -> Double {
    let (value, cache) = try evaluation.forward(tensors, keeps: keep != nil)
    keep?.cache = cache
    keep?.owner = token
    return value
  }

  /// targets[i] += upstream · gradient with respect to input i.
  package func pullback(_ kept: CacheObject, _ upstream: Double, _ targets: [View?]) throws(Failure) {
    guard let cache = kept.cache else {
      throw Failure(Status.sequence, "the cache is empty: run a forward pass with it first")
    }
    guard kept.owner === token else { throw Failure(Status.mismatch, "the cache was filled by another objective") }
    try evaluation.pullback(cache, upstream, targets)
  }
}

extension ObjectiveObject {
  private var sentence: String { aggregation?.sentence ?? evaluation.hyper.sentence(evaluation.method.name) }
  /// What it keeps between passes.
  package func save() throws(Failure) -> [UInt8] {
    let memory = evaluation.memory
    return SavedNumbers(
      mark: SavedNumbers.objective, text: sentence, first: Double(memory.passes),
      numbers: try aggregation?.numbers() ?? memory.numbers
    ).bytes
  }
  package func load(_ data: UnsafeRawBufferPointer) throws(Failure) {
    let what = evaluation.method.kind.rawValue, memory = evaluation.memory
    let saved = try SavedNumbers(data, mark: SavedNumbers.objective, of: what, sentence)
    guard saved.first >= 0, saved.first < 0x1p53, saved.first == saved.first.rounded(),
      try aggregation?.take(saved.numbers) ?? true,
      memory.take(aggregation == nil ? saved.numbers : memory.numbers, passes: Int(saved.first))
    else { throw SavedNumbers.damaged(what, "its numbers make no sense") }
  }
}

/// What a host holds between a forward pass and its pull-backs.
package final class CacheObject {
  fileprivate var cache: Cache?
  fileprivate var owner: ObjectiveObject.Token?
  package init() {}
  /// The shape of a gradient or a result that `pullback` can write now; nil where there is none.
  package func shape(_ input: Input) -> [Int]? {
    guard let cache, input.result || cache.given.contains(input.name) else { return nil }
    return cache.sizes.shape(input)
  }
  /// Gradients are computed in float64.
  package var isDouble: Bool { cache?.isDouble ?? false }
}
