/// A scalar function of named tensors, as a pair: `forward` gives the value and puts what the pull-back will need into
/// the cache, `pullback` gives the gradient of one input. What the declaration does not call differentiable is held
/// constant.
public protocol Objective: Listed, Sendable {
  static var method: Method { get }
  /// What it keeps from one forward pass to the next, as numbers in double; most keep nothing.
  static func state(_ h: Hyper) -> [Recollection]
  /// Of a regularizer: what `penalty(...)`, `prox(...)` and `decoupled(...)` do in a pipeline, where they can.
  static var inPipelines: RegularizerStages { get }
  init(_ h: Hyper)
  /// The value; `cache` is nil when no gradient will be asked for.
  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double
  /// g ← the gradient with respect to `name`; g is dense and holds zeros. As it stands: what `forward` kept under that
  /// name.
  func pullback<T: Real>(_ cache: Cache, _ name: String, _ g: UnsafeMutablePointer<T>) throws(Failure)
}

/// Numbers that an objective keeps: one for each element of `axes`, which its inputs have ("" is one number, "..." are
/// their axes of that name).
public struct Recollection: Sendable {
  public var name: String
  public var axes: [String]
  public var start: Double
  /// An input of the same name stands for it where the host gives one: it then stays as it is.
  public var isInput: Bool
  public init(_ name: String, _ axes: String = "", start: Double = 0, isInput: Bool = false) {
    (self.name, self.start, self.isInput) = (name, start, isInput)
    self.axes = axes.split(separator: ",").map { String($0.drop { $0 == " " }) }
  }
  /// How many numbers they are; nil while an axis is unknown.
  func count(_ sizes: Sizes) -> Int? {
    var n = 1
    for axis in axes {
      guard let size = axis == "..." ? sizes.samples : Int(axis) ?? sizes.known(axis) else { return nil }
      n = n.multipliedReportingOverflow(by: size).overflow ? Int.max : n * size
    }
    return n
  }
}

/// What an objective keeps, at work: `x.memory["history"]`. A pass that fails leaves it as it was.
public final class ObjectiveMemory {
  public let parts: [Recollection]
  public private(set) var values: [[Double]] = []
  /// Passes that are over.
  public private(set) var passes = 0
  private var pointers: [UnsafeMutableBufferPointer<Double>] = []

  public init(_ parts: [Recollection]) { self.parts = parts }

  /// The numbers under a name, as the present pass may change them.
  public subscript(_ name: String) -> UnsafeMutablePointer<Double> {
    get throws(Failure) {
      guard let k = parts.firstIndex(where: { $0.name == name }), k < pointers.count, let p = pointers[k].baseAddress
      else { throw Failure(Status.internal, "nothing is kept under `\(name)`") }
      return p
    }
  }

  /// Runs a pass on copies, which count when it succeeds.
  public func pass<R>(_ sizes: Sizes, given: Set<String> = [], _ body: () throws(Failure) -> R) throws(Failure) -> R {
    for (k, part) in parts.enumerated() {
      if part.isInput, given.contains(part.name) {
        pointers.append(UnsafeMutableBufferPointer(start: nil, count: 0))
        continue
      }
      guard let n = part.count(sizes), n < 1 << 40 else {
        throw Failure(Status.internal, "the size of `\(part.name)` is not known")
      }
      let before = k < values.count ? values[k] : []
      if !before.isEmpty, before.count != n {
        throw Failure(
          Status.shape, "it began with \(before.count) numbers of \(part.axes.joined(separator: ", ")), got \(n)")
      }
      try Memory.ask(2 * n * MemoryLayout<Double>.stride)
      let copy = UnsafeMutableBufferPointer<Double>.allocate(capacity: max(1, n))
      copy.initialize(repeating: part.start)
      for i in before.indices { copy[i] = before[i] }
      pointers.append(copy)
    }
    defer {
      for p in pointers { p.deallocate() }
      pointers = []
    }
    let result = try body()
    values = parts.indices.map { k in
      if parts[k].isInput, given.contains(parts[k].name) { return k < values.count ? values[k] : [] }
      return Array(pointers[k].prefix(parts[k].count(sizes) ?? 0))
    }
    passes += 1
    return result
  }

  /// All of it as numbers: of each part how many, and they.
  public var numbers: [Double] { values.flatMap { [Double($0.count)] + $0 } }
  /// The way back; false: they make no sense.
  public func take(_ numbers: [Double], passes: Int) -> Bool {
    var rest = numbers[...], read: [[Double]] = []
    while let n = rest.popFirst() {
      guard n >= 0, n == n.rounded(), n <= Double(rest.count) else { return false }
      read.append(Array(rest.prefix(Int(n))))
      rest = rest.dropFirst(Int(n))
    }
    guard read.count == parts.count || (read.isEmpty && passes == 0) else { return false }
    for (part, v) in zip(parts, read) where part.axes.isEmpty && v.count != 1 { return false }
    (values, self.passes) = (read, passes)
    return true
  }
}

extension Objective {
  @inlinable public static func state(_ h: Hyper) -> [Recollection] { [] }
  public static var inPipelines: RegularizerStages { RegularizerStages() }
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
    guard let part = parts[name] else {
      throw Failure(Status.needs, "`\(name)` does not come of these inputs: others are missing")
    }
    return UnsafePointer(part.memory.base.assumingMemoryBound(to: E.self))
  }
  public func count(_ name: String) -> Int { parts[name]?.count ?? 0 }
}

/// Sums over independent rows, in blocks that run side by side; the blocks depend on the sizes alone and are added in
/// order, so that the bits do not depend on the number of threads.
public enum Rows {
  /// Σ body(row); a row costs about `work` operations. `body` may write what belongs to its row.
  @inlinable public static func sum(_ rows: Int, work: Int, _ body: (Int) -> Double) -> Double {
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
  public let inPipelines: RegularizerStages
  public let state: @Sendable (Hyper) -> [Recollection]
  public let forward32: @Sendable (Hyper, Inputs<Float>, Cache?) throws(Failure) -> Double
  public let forward64: @Sendable (Hyper, Inputs<Double>, Cache?) throws(Failure) -> Double
  public let pullback32: @Sendable (Hyper, Cache, String, UnsafeMutablePointer<Float>) throws(Failure) -> Void
  public let pullback64: @Sendable (Hyper, Cache, String, UnsafeMutablePointer<Double>) throws(Failure) -> Void
  public init(
    inPipelines: RegularizerStages, state: @escaping @Sendable (Hyper) -> [Recollection],
    forward32: @escaping @Sendable (Hyper, Inputs<Float>, Cache?) throws(Failure) -> Double,
    forward64: @escaping @Sendable (Hyper, Inputs<Double>, Cache?) throws(Failure) -> Double,
    pullback32: @escaping @Sendable (Hyper, Cache, String, UnsafeMutablePointer<Float>) throws(Failure) -> Void,
    pullback64: @escaping @Sendable (Hyper, Cache, String, UnsafeMutablePointer<Double>) throws(Failure) -> Void
  ) {
    (self.inPipelines, self.state) = (inPipelines, state)
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
        inPipelines: O.inPipelines, state: { O.state($0) },
        forward32: { (h, x, c) throws(Failure) in try O(h).forward(x, c) },
        forward64: { (h, x, c) throws(Failure) in try O(h).forward(x, c) },
        pullback32: { (h, c, n, g) throws(Failure) in try O(h).pullback(c, n, g) },
        pullback64: { (h, c, n, g) throws(Failure) in try O(h).pullback(c, n, g) })))
}
