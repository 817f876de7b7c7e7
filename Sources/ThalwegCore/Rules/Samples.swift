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
  /// where one is too large for that.
  private var group: Int {
    let bytes = sizes.reduce(0, +) &* 8
    return bytes > 0 && bytes <= Samples.near / 2 ? Samples.near / bytes : max(1, count)
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
        for b in samples { out[(b - samples.lowerBound) * blocks.count + k] = squaredNorm(piece, b) }
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
    func look(_ samples: Swift.Range<Int>) -> [[Double]] {
      measure(max(samples.lowerBound, squares.count)..<max(samples.upperBound, squares.count))
      return samples.map { weights($0, squares[$0]) }
    }
    guard step < count, let memory = try? Memory(8 * all, .current) else {
      let factors = look(0..<count)
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
      let factors = look(samples)
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
    for b in samples {
      let weight = factors[b - samples.lowerBound][piece.tensor]
      if weight != 0 { look(piece, b, Add(weight: weight * scale, sum: sum)) }
    }
  }
  private func squaredNorm(_ piece: Block, _ b: Int) -> Double { look(piece, b, Square()) }

  /// Looks at the elements of a piece where they lie, or at a copy in double.
  private func look<V: Look>(_ piece: Block, _ b: Int, _ body: V) -> V.Result {
    let layout = layouts[piece.tensor], n = piece.count, start = b * sizes[piece.tensor] + piece.first
    if layout.dense, layout.dtype == .f32 {
      return body.see(layout.data.assumingMemoryBound(to: Float.self) + start, n)
    }
    if layout.dense, layout.dtype == .f64 {
      return body.see(layout.data.assumingMemoryBound(to: Double.self) + start, n)
    }
    return withUnsafeTemporaryAllocation(of: Double.self, capacity: max(1, n)) { buffer in
      let p = buffer.baseAddress.unsafelyUnwrapped
      layout.read(start, n, p, scale: 1)
      return body.see(UnsafePointer(p), n)
    }
  }
}

/// What is done with a run of elements of any type.
private protocol Look {
  associatedtype Result
  func see<T: Real>(_ p: UnsafePointer<T>, _ n: Int) -> Result
}
private struct Square: Look {
  func see<T: Real>(_ p: UnsafePointer<T>, _ n: Int) -> Double { Flat.squaredNorm(p, n) }
}
private struct Add: Look {
  let weight: Double
  let sum: UnsafeMutablePointer<Double>
  func see<T: Real>(_ p: UnsafePointer<T>, _ n: Int) { Flat.add(p, times: weight, to: sum, n) }
}
