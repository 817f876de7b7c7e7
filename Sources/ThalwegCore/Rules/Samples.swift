/// The gradients of every sample of a minibatch, as the host answered: of each tensor that takes part
/// (samples, ...shape). They count as the host's gradients do: loss scale and `maximize` are applied.
public final class Samples {
  /// How many samples there are; none is an answer too.
  public let count: Int
  /// The tensors that take part, by position.
  public let tensors: [Int]
  private let layouts: [Layout]
  private let sizes: [Int]
  private let scale: Double
  /// The tensors, cut into pieces.
  private let blocks: [Block]
  /// The squares of the norms, [sample][tensor], of the samples that were read so far.
  private var squares: [[Double]] = []

  private struct Block {
    let tensor: Int, first: Int, count: Int
  }
  private static let block = 2048
  /// So many bytes of samples are in cache still when they are read again.
  private static let near = 1 << 21

  /// Throws TW_ERROR_MEMORY where the numbers that are kept a sample do not fit (a broadcast view may stand for any
  /// number of samples).
  public init(_ count: Int, _ tensors: [Int], _ layouts: [Layout], _ sizes: [Int], scale: Double) throws(Failure) {
    (self.count, self.tensors, self.layouts, self.sizes, self.scale) = (count, tensors, layouts, sizes, scale)
    blocks = sizes.indices.flatMap { k in
      stride(from: 0, to: sizes[k], by: Samples.block).map {
        Block(tensor: k, first: $0, count: min(Samples.block, sizes[k] - $0))
      }
    }
    // squares, weights, and what sorts them
    let (bytes, overflow) = count.multipliedReportingOverflow(by: 8 * (8 + 4 * sizes.count))
    try Memory.ask(overflow ? Int.max : bytes)
    squares.reserveCapacity(count)
  }

  /// Some samples, of which all is read before the next ones: so that they are in cache at the second look. All of them
  /// where two are too large for that.
  private var group: Int {
    let bytes = zip(sizes, layouts).reduce(0) { $0 + $1.0 &* ($1.1.dense && $1.1.dtype == .f32 ? 4 : 8) }
    guard bytes > 0, bytes <= Samples.near / 2 else { return max(1, count) }
    let few = Samples.near / bytes
    return few < 4 ? few : few & ~3  // (they are looked at by fours)
  }
  private func runs(_ samples: Swift.Range<Int>) -> Bool {
    blocks.reduce(0) { $0 + $1.count } >= Walker.parallelFrom / max(1, samples.count)
  }

  /// The squares of the norms of some more samples. The same bits for any number of threads.
  private func measure(_ samples: Swift.Range<Int>) {
    guard !samples.isEmpty else { return }
    guard samples.count == 1 || samples.count * blocks.count <= 1 << 20 else {  // the parts stay small
      let middle = samples.lowerBound + samples.count / 2
      measure(samples.lowerBound..<middle)
      return measure(middle..<samples.upperBound)
    }
    var parts = [Double](repeating: 0, count: samples.count * blocks.count)
    parts.withUnsafeMutableBufferPointer { out in
      nonisolated(unsafe) let out = out
      Threads.run(blocks.count, parallel: runs(samples)) { k in
        let piece = blocks[k]
        for first in stride(from: samples.lowerBound, to: samples.upperBound, by: 4) {
          // beyond the end a sample stands for another, and nobody takes its square
          let last = samples.upperBound - 1
          let four = look(piece, [first, min(first + 1, last), min(first + 2, last), min(first + 3, last)], Square())
          for b in first...min(first + 3, last) {
            out[(b - samples.lowerBound) * blocks.count + k] = four[b - first]
          }
        }
      }
    }
    for b in 0..<samples.count {
      var row = [Double](repeating: 0, count: sizes.count)
      for (k, piece) in blocks.enumerated() { row[piece.tensor] += parts[b * blocks.count + k] }
      squares.append(row.map { $0 * scale * scale })
    }
  }

  /// The sum of the squares of some tensors. They are added in the order of their size, so that the order of binding
  /// does not matter.
  public static func total(_ squares: [Double]) -> Double {
    squares.sorted { $0 < $1 || $1.isNaN && !$0.isNaN }.reduce(0, +)
  }
  /// No element is NaN or infinite (nor a norm beyond all doubles).
  public var isFinite: Bool {
    measure(squares.count..<count)
    return squares.allSatisfy { $0.allSatisfy(\.isFinite) }
  }

  /// Where a combination of the samples of a tensor goes.
  public struct Target {
    let base: UnsafeMutableRawPointer
    let isDouble: Bool
    public init(_ base: UnsafeMutableRawPointer, isDouble: Bool) { (self.base, self.isDouble) = (base, isDouble) }
  }

  /// target_k ← Σ_b weights(b, ‖g_b‖²)_k·g_b, the k-th tensor that takes part; the squares are those of the tensors.
  /// A sample of weight 0 counts nothing, whatever it is. Sums are taken in double, sample after sample.
  public func combine(into targets: [Target], _ weights: (_ sample: Int, _ squares: [Double]) -> [Double]) {
    let step = group, all = blocks.reduce(0) { $0 + $1.count }
    func factors(of samples: Swift.Range<Int>) -> [[Double]] {
      measure(max(samples.lowerBound, squares.count)..<max(samples.upperBound, squares.count))
      return samples.map { weights($0, squares[$0]) }
    }
    guard step < count, let memory = try? Memory(8 * all, .current) else {
      let factors = factors(of: 0..<count)
      Threads.run(blocks.count, parallel: runs(0..<count)) { k in
        withUnsafeTemporaryAllocation(of: Double.self, capacity: Samples.block) { buffer in
          guard let sum = buffer.baseAddress else { return }
          sum.initialize(repeating: 0, count: Samples.block)
          add(blocks[k], 0..<count, factors, sum)
          write(blocks[k], sum, targets)
        }
      }
      return
    }
    nonisolated(unsafe) let sums = memory.base.bindMemory(to: Double.self, capacity: all)
    var starts: [Int] = [], at = 0
    for piece in blocks {
      starts.append(at)
      at += piece.count
    }
    for first in stride(from: 0, to: count, by: step) {
      let samples = first..<min(first + step, count)
      let factors = factors(of: samples)
      Threads.run(blocks.count, parallel: runs(samples)) { k in add(blocks[k], samples, factors, sums + starts[k]) }
    }
    for (k, piece) in blocks.enumerated() { write(piece, sums + starts[k], targets) }
    withExtendedLifetime(memory) {}
  }

  private func write(_ piece: Block, _ sum: UnsafeMutablePointer<Double>, _ targets: [Target]) {
    let target = targets[piece.tensor]
    if target.isDouble {
      (target.base.assumingMemoryBound(to: Double.self) + piece.first).update(from: sum, count: piece.count)
    } else {
      let out = target.base.assumingMemoryBound(to: Float.self) + piece.first
      for i in 0..<piece.count { out[i] = Float(sum[i]) }
    }
  }

  private func add(
    _ piece: Block, _ samples: Swift.Range<Int>, _ factors: [[Double]], _ sum: UnsafeMutablePointer<Double>
  ) {
    let counting = samples.filter { factors[$0 - samples.lowerBound][piece.tensor] != 0 }
    for first in stride(from: 0, to: counting.count, by: 4) {
      var four = [Int](repeating: counting[first], count: 4), weights = SIMD4<Double>(repeating: 0)
      for k in 0..<min(4, counting.count - first) {
        four[k] = counting[first + k]
        weights[k] = factors[four[k] - samples.lowerBound][piece.tensor] * scale
      }
      look(piece, four, Add(weights: weights, sum: sum))
    }
  }

  /// Looks at the elements of a piece of four samples where they lie, or at copies in double.
  private func look<V: Look>(_ piece: Block, _ samples: [Int], _ body: V) -> V.Result {
    let layout = layouts[piece.tensor], n = piece.count
    func start(_ k: Int) -> Int { samples[k] * sizes[piece.tensor] + piece.first }
    func lying<T: Real>(_: T.Type) -> V.Result {
      let p = UnsafePointer(layout.data.assumingMemoryBound(to: T.self))
      return body.see(Rows4 { p + start($0) }, n)
    }
    if layout.dense, layout.dtype == .f32 { return lying(Float.self) }
    if layout.dense, layout.dtype == .f64 { return lying(Double.self) }
    return withUnsafeTemporaryAllocation(of: Double.self, capacity: max(1, 4 * n)) { buffer in
      let p = buffer.baseAddress.unsafelyUnwrapped
      for k in 0..<4 { layout.read(start(k), n, p + k * n, scale: 1) }
      return body.see(Rows4 { UnsafePointer(p) + $0 * n }, n)
    }
  }
}

/// What is done with runs of elements of any type.
private protocol Look {
  associatedtype Result
  func see<T: Real>(_ rows: Rows4<T>, _ n: Int) -> Result
}

private struct Square: Look {
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  func see<T: Real>(_ rows: Rows4<T>, _ n: Int) -> SIMD4<Double> {
    typealias L = T.Vector
    let zero = SIMD8<Double>(repeating: 0)
    var (a, b, c, d) = (zero, zero, zero, zero), rest = SIMD4<Double>(repeating: 0), i = 0
    @inline(__always) func square(_ p: UnsafePointer<T>) -> SIMD8<Double> {
      let x = L.load(p + i).wide
      return L.width == 16 ? x.low * x.low + x.high * x.high : x.low * x.low
    }
    while i &+ L.width <= n {
      a += square(rows.a)
      b += square(rows.b)
      c += square(rows.c)
      d += square(rows.d)
      i &+= L.width
    }
    while i < n {
      let x = SIMD4(Double(rows.a[i]), Double(rows.b[i]), Double(rows.c[i]), Double(rows.d[i]))
      rest += x * x
      i &+= 1
    }
    return rest + SIMD4(a.sum(), b.sum(), c.sum(), d.sum())
  }
}

private struct Add: Look {
  let weights: SIMD4<Double>
  let sum: UnsafeMutablePointer<Double>

  @_specialize(where T == Float)
  @_specialize(where T == Double)
  func see<T: Real>(_ rows: Rows4<T>, _ n: Int) {
    typealias L = T.Vector
    let (a, b, c, d) = (weights[0], weights[1], weights[2], weights[3])
    var i = 0
    while i &+ L.width <= n {
      let (x, y) = (L.load(rows.a + i).wide, L.load(rows.b + i).wide)
      let (z, w) = (L.load(rows.c + i).wide, L.load(rows.d + i).wide)
      var low = SIMD8<Double>.load(UnsafePointer(sum + i))
      low = low + a * x.low + b * y.low + c * z.low + d * w.low
      low.store(sum + i)
      if L.width == 16 {
        var high = SIMD8<Double>.load(UnsafePointer(sum + (i &+ 8)))
        high = high + a * x.high + b * y.high + c * z.high + d * w.high
        high.store(sum + (i &+ 8))
      }
      i &+= L.width
    }
    while i < n {
      sum[i] = sum[i] + a * Double(rows.a[i]) + b * Double(rows.b[i]) + c * Double(rows.c[i]) + d * Double(rows.d[i])
      i &+= 1
    }
  }
}
