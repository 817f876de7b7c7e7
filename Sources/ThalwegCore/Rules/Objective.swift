/// A scalar function of named tensors, as a pair: `forward` gives the value and puts what the pull-back will need into
/// the cache, `pullback` gives the gradient of one input. What the declaration does not call differentiable is held
/// constant.
public protocol Objective: Listed, Sendable {
  static var method: Method { get }
  init(_ h: Hyper)
  /// The value; `cache` is nil when no gradient will be asked for.
  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double
  /// g ← the gradient with respect to `name`; g is dense and holds zeros. As it stands: what `forward` kept under that
  /// name.
  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure)
}

extension Objective {
  @inlinable public static var registered: Registered { entry(Self.self) }
  public func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure) {
    g.update(from: try cache.kept(name, T.self), count: cache.count(name))
  }
}

/// What one forward pass leaves for its pull-backs. It owns its memory: the host may change its inputs in between.
public final class Cache {
  public let sizes: Sizes
  public let isDouble: Bool
  /// The inputs that were given, by name.
  public let given: Set<String>
  public var value = 0.0
  private var parts: [String: (memory: Memory, count: Int)] = [:]

  public init(_ sizes: Sizes, isDouble: Bool, given: Set<String>) {
    (self.sizes, self.isDouble, self.given) = (sizes, isDouble, given)
  }

  /// Room for `count` numbers under a name.
  public func keep<E: BitwiseCopyable>(_ name: String, _ count: Int, _: E.Type) throws(Failure)
    -> UnsafeMutablePointer<E>
  {
    let memory = try Memory(count * MemoryLayout<E>.stride, .current)
    parts[name] = (memory, count)
    return memory.base.bindMemory(to: E.self, capacity: count)
  }
  /// A copy of numbers under a name.
  public func keep<E: BitwiseCopyable>(_ name: String, _ count: Int, of values: UnsafePointer<E>) throws(Failure) {
    try keep(name, count, E.self).update(from: values, count: count)
  }
  public func kept<E: BitwiseCopyable>(_ name: String, _: E.Type) throws(Failure) -> UnsafePointer<E> {
    guard let part = parts[name] else { throw Failure(Status.internal, "the cache has no part `\(name)`") }
    return UnsafePointer(part.memory.base.assumingMemoryBound(to: E.self))
  }
  public func count(_ name: String) -> Int { parts[name]?.count ?? 0 }
}

/// Sums over independent rows, in blocks that run side by side; the blocks depend on the sizes alone and are added in
/// order, so that the bits do not depend on the number of threads.
public enum Rows {
  /// Σ body(row); a row costs about `work` operations. `body` may write what belongs to its row.
  public static func sum(_ rows: Int, work: Int, _ body: (Int) -> Double) -> Double {
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
public struct ObjectiveKernels: Sendable {
  public let forward32: @Sendable (Hyper, Inputs<Float>, Cache?) throws(Failure) -> Double
  public let forward64: @Sendable (Hyper, Inputs<Double>, Cache?) throws(Failure) -> Double
  public let pullback32: @Sendable (Hyper, Cache, String, UnsafeMutablePointer<Float>) throws(Failure) -> Void
  public let pullback64: @Sendable (Hyper, Cache, String, UnsafeMutablePointer<Double>) throws(Failure) -> Void
  @usableFromInline init(
    forward32: @escaping @Sendable (Hyper, Inputs<Float>, Cache?) throws(Failure) -> Double,
    forward64: @escaping @Sendable (Hyper, Inputs<Double>, Cache?) throws(Failure) -> Double,
    pullback32: @escaping @Sendable (Hyper, Cache, String, UnsafeMutablePointer<Float>) throws(Failure) -> Void,
    pullback64: @escaping @Sendable (Hyper, Cache, String, UnsafeMutablePointer<Double>) throws(Failure) -> Void
  ) {
    (self.forward32, self.forward64) = (forward32, forward64)
    (self.pullback32, self.pullback64) = (pullback32, pullback64)
  }
}

/// Registers an objective, or a regularizer that needs more than the weights: its first input is the weights then.
@inlinable public func entry<O: Objective>(_: O.Type) -> Registered {
  Registered(
    method: O.method,
    component: .objective(
      ObjectiveKernels(
        forward32: { (h, x, c) throws(Failure) in try O(h).forward(x, c) },
        forward64: { (h, x, c) throws(Failure) in try O(h).forward(x, c) },
        pullback32: { (h, c, n, g) throws(Failure) in try O(h).pullback(c, n, g) },
        pullback64: { (h, c, n, g) throws(Failure) in try O(h).pullback(c, n, g) })))
}
