/// The gradients of every sample of a minibatch, as the host answered: of each tensor that takes part
/// (samples, ...shape). They count as the host's gradients do: loss scale and `maximize` are applied.
public final class Samples {
  /// How many samples there are; none is an answer too.
  public let count: Int
  /// The tensors that take part, by position.
  public let tensors: [Int]
  let layouts: [Layout]
  let sizes: [Int]
  let scale: Double

  /// Throws TW_ERROR_MEMORY where the numbers that are kept a sample do not fit (a broadcast view may stand for any
  /// number of samples).
  public init(_ count: Int, _ tensors: [Int], _ layouts: [Layout], _ sizes: [Int], scale: Double) throws(Failure) {
    (self.count, self.tensors, self.layouts, self.sizes, self.scale) = (count, tensors, layouts, sizes, scale)
    // parts of the squares, squares, weights, and what sorts them
    let numbers = sizes.reduce(8) { $0 + Samples.blocks($1) + 4 }
    let (bytes, overflow) = count.multipliedReportingOverflow(by: 8 * numbers)
    try Memory.ask(overflow ? Int.max : bytes)
  }

  private static let block = 4096
  private static func blocks(_ n: Int) -> Int { max(1, n / block + (n % block == 0 ? 0 : 1)) }

  /// The squares of the norms, [tensor][sample], in double. The same bits for any number of threads.
  public private(set) lazy var squares: [[Double]] = layouts.indices.map { k in
    let n = sizes[k], blocks = Samples.blocks(n)
    var parts = [Double](repeating: 0, count: count * blocks)
    parts.withUnsafeMutableBufferPointer { out in
      nonisolated(unsafe) let out = out, layout = layouts[k]
      Threads.run(count * blocks, parallel: count * n >= Walker.parallelFrom) { task in
        let first = task % blocks * Samples.block, m = min(Samples.block, n - first)
        out[task] = Samples.read(layout, task / blocks * n + first, m) { p in Flat.squaredNorm(p, m) }
      }
    }
    return (0..<count).map { b in
      parts[(b * blocks)..<((b + 1) * blocks)].reduce(0, +) * scale * scale
    }
  }

  /// The squares of the norms over all tensors, by sample. They are added in the order of their size, so that the order
  /// of binding does not matter.
  public var totals: [Double] {
    (0..<count).map { b in squares.map { $0[b] }.sorted { $0 < $1 || $1.isNaN && !$0.isNaN }.reduce(0, +) }
  }
  /// No element is NaN or infinite (nor a norm beyond all doubles).
  public var isFinite: Bool { squares.allSatisfy { $0.allSatisfy(\.isFinite) } }

  /// out ← Σ_b weight(b)·g_b of the k-th tensor that takes part; a sample of weight 0 counts nothing, whatever it is.
  public func combine<T: Real>(_ k: Int, _ weights: [Double], into out: UnsafeMutablePointer<T>) {
    let n = sizes[k], blocks = Samples.blocks(n)
    nonisolated(unsafe) let out = out, layout = layouts[k]
    Threads.run(blocks, parallel: count * n >= Walker.parallelFrom) { task in
      let first = task * Samples.block, m = min(Samples.block, n - first)
      guard m > 0 else { return }
      withUnsafeTemporaryAllocation(of: Double.self, capacity: m) { sums in
        guard let sum = sums.baseAddress else { return }
        sum.initialize(repeating: 0, count: m)
        for b in 0..<count where weights[b] != 0 {
          let weight = weights[b] * scale
          Samples.read(layout, b * n + first, m) { p in for i in 0..<m { sum[i] += weight * p[i] } }
        }
        for i in 0..<m { out[first + i] = T(sum[i]) }
      }
    }
  }

  /// Some elements, in double.
  private static func read<R>(_ layout: Layout, _ start: Int, _ n: Int, _ body: (UnsafePointer<Double>) -> R) -> R {
    withUnsafeTemporaryAllocation(of: Double.self, capacity: max(1, n)) { buffer in
      let p = buffer.baseAddress.unsafelyUnwrapped
      if n > 0 { layout.read(start, n, p, scale: 1) }
      return body(p)
    }
  }
}
