import CThalweg

/// A scalar function of named tensors, as a pair: `forward` gives the value and puts what the pull-back will need into
/// the cache, `pullback` gives the gradient of one input. What the declaration does not call differentiable is held
/// constant.
package protocol Objective: Sendable {
  static var method: Method { get }
  init(_ h: Hyper)
  /// The value; `cache` is nil when no gradient will be asked for.
  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double
  /// g ← the gradient with respect to `name`; g is dense and holds zeros. As it stands: what `forward` kept under that
  /// name.
  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure)
}

extension Objective {
  package func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    g.update(from: try cache.kept(name, T.self), count: cache.count(name))
  }
}

/// What one forward pass leaves for its pull-backs. It owns its memory: the host may change its inputs in between.
package final class Cache {
  package let sizes: Sizes
  let isDouble: Bool
  /// The inputs that were given, by name.
  let given: Set<String>
  fileprivate var value = 0.0
  private var parts: [String: (memory: Memory, count: Int)] = [:]

  init(_ sizes: Sizes, isDouble: Bool, given: Set<String>) {
    (self.sizes, self.isDouble, self.given) = (sizes, isDouble, given)
  }

  /// Room for `count` numbers under a name.
  package func keep<E: BitwiseCopyable>(_ name: String, _ count: Int, _: E.Type) throws(Failure)
    -> UnsafeMutablePointer<E>
  {
    let memory = try Memory(count * MemoryLayout<E>.stride, .current)
    parts[name] = (memory, count)
    return memory.base.bindMemory(to: E.self, capacity: count)
  }
  /// A copy of numbers under a name.
  package func keep<E: BitwiseCopyable>(_ name: String, _ count: Int, of values: UnsafePointer<E>) throws(Failure) {
    try keep(name, count, E.self).update(from: values, count: count)
  }
  package func kept<E: BitwiseCopyable>(_ name: String, _: E.Type) throws(Failure) -> UnsafePointer<E> {
    guard let part = parts[name] else { throw Failure(Status.internal, "the cache has no part `\(name)`") }
    return UnsafePointer(part.memory.base.assumingMemoryBound(to: E.self))
  }
  package func count(_ name: String) -> Int { parts[name]?.count ?? 0 }
}

/// Sums over independent rows, in blocks that run side by side; the blocks depend on the sizes alone and are added in
/// order, so that the bits do not depend on the number of threads.
package enum Rows {
  /// Σ body(row); a row costs about `work` operations. `body` may write what belongs to its row.
  package static func sum(_ rows: Int, work: Int, _ body: (Int) -> Double) -> Double {
    let block = max(1, 8192 / max(1, work))
    let blocks = rows / block + (rows % block == 0 ? 0 : 1)
    var sums = [Double](repeating: 0, count: blocks)
    sums.withUnsafeMutableBufferPointer { out in
      Threads.run(blocks, parallel: blocks > 1) { b in
        var sum = 0.0
        for row in (b * block)..<min(rows, (b + 1) * block) { sum += body(row) }
        out[b] = sum
      }
    }
    return sums.reduce(0, +)
  }
}

/// An objective with its types erased.
package struct ObjectiveKernels: Sendable {
  let forward32: @Sendable (Hyper, Inputs<Float>, Cache?) throws(Failure) -> Double
  let forward64: @Sendable (Hyper, Inputs<Double>, Cache?) throws(Failure) -> Double
  let pullback32: @Sendable (Hyper, Cache, String, UnsafeMutablePointer<Float>) throws(Failure) -> Void
  let pullback64: @Sendable (Hyper, Cache, String, UnsafeMutablePointer<Double>) throws(Failure) -> Void
}

/// Registers an objective, or a regularizer that needs more than the weights: its first input is the weights then.
package func entry<O: Objective>(_: O.Type) -> Registered {
  Registered(
    method: O.method,
    component: .objective(
      ObjectiveKernels(
        forward32: { (h, x, c) throws(Failure) in try O(h).forward(x, c) },
        forward64: { (h, x, c) throws(Failure) in try O(h).forward(x, c) },
        pullback32: { (h, c, n, g) throws(Failure) in try O(h).pullback(c, n, g) },
        pullback64: { (h, c, n, g) throws(Failure) in try O(h).pullback(c, n, g) })))
}

/// An objective at work on the tensors of a host: checks, widening, narrowing.
struct Evaluation {
  let method: Method
  let hyper: Hyper
  let kernels: ObjectiveKernels

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
        throw Failure(Int(error.status), "\(method.name): \(error.message)")
      }
      list.append((input, operand))
    }
    let isDouble = list.contains { !$0.0.integer && $0.1.view.dtype == .f64 }
    let cache = keeps ? Cache(sizes, isDouble: isDouble, given: Set(list.map(\.0.name))) : nil
    do throws(Failure) {
      let value =
        isDouble
        ? try evaluate(kernels.forward64, list, sizes, cache) : try evaluate(kernels.forward32, list, sizes, cache)
      cache?.value = value
      return (value, cache)
    } catch { throw Failure(Int(error.status), "\(method.name): \(error.message)") }
  }
  private func evaluate<T: Real>(
    _ forward: (Hyper, Inputs<T>, Cache?) throws(Failure) -> Double, _ list: [(Input, Operand)], _ sizes: Sizes,
    _ cache: Cache?
  ) throws(Failure) -> Double {
    let x = try Inputs<T>(list, sizes)
    defer { withExtendedLifetime(x) {} }  // it owns what the pointers that it hands out point to
    return try forward(hyper, x, cache)
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
    guard cache.value.isFinite else {
      throw Failure(
        Status.nonfinite,
        "\(method.name): its value is \(text(cache.value)), which has no gradient; nothing was changed")
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
    } catch { throw Failure(Int(error.status), "\(method.name): \(error.message)") }
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
  private let token = Token()
  /// Says which object filled a cache.
  fileprivate final class Token {}

  package init(_ text: String) throws(Failure) {
    let (e, h) = try single(text, .objective)
    guard case .objective(let k) = e.component else { throw Failure(Status.internal, "not an objective") }
    evaluation = Evaluation(method: e.method, hyper: h, kernels: k)
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

/// What a host holds between a forward pass and its pull-backs.
package final class CacheObject {
  fileprivate var cache: Cache?
  fileprivate var owner: ObjectiveObject.Token?
  package init() {}
}
