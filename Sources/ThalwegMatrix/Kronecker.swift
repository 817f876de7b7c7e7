import Glibc
import ThalwegCore

/// How methods with one square matrix an axis see a tensor: cut into blocks, each a tensor of its own, and for every
/// block the axes that have a matrix.
struct Kronecker {
  struct Axis {
    /// Which axis of the block, and the lines along it.
    let index: Int, lines: Slices
    /// Where its matrix lies in a buffer of all matrices, and its numbers in a buffer of one number a row.
    let matrix: Int, row: Int
    var length: Int { lines.length }
  }
  struct Block {
    let dimensions: [Int], axes: [Axis]
    /// The element of the tensor where it begins, and where it lies in a buffer of all blocks, one after the other.
    let start: Int, place: Int
    let count: Int
  }
  let blocks: [Block]
  /// Elements of all matrices, rows of all matrices, elements of the largest block.
  let matrices: Int, rows: Int, largest: Int
  private let strides: [Int], whole: Bool

  /// The longest axis that has a matrix: LAPACK counts elements and work space in 32 bits.
  static let most = 30_000

  /// Axes longer than `longest` have no matrix; `side` is the longest axis of a block. `squeezed`: nor have those of
  /// length 1, where a block has others.
  init(_ dimensions: [Int], longest: Int, side: Int = .max, squeezed: Bool = false) {
    let dims = dimensions.isEmpty ? [1] : dimensions
    var strides = [Int](repeating: 1, count: dims.count)
    for k in dims.indices.dropLast().reversed() { strides[k] = strides[k + 1] &* dims[k + 1] }
    let parts = dims.map { max(0, ($0 - 1) / side + ($0 > 0 ? 1 : 0)) }
    let count = parts.reduce(1, &*)
    var blocks: [Block] = []
    var (matrix, row, place, largest) = (0, 0, 0, 0)
    for b in 0..<count {
      var rest = b, start = 0
      var own = dims
      for k in dims.indices.reversed() {
        let p = rest % parts[k]
        rest /= parts[k]
        let first = p * side
        own[k] = min(side, dims[k] - first)
        start += first &* strides[k]
      }
      let shape = Shape(dimensions: own)
      var axes: [Axis] = []
      let flat = squeezed && own.contains { $0 != 1 }
      for k in own.indices where own[k] <= longest && !(flat && own[k] == 1) {
        axes.append(Axis(index: k, lines: Slices.along(k, shape), matrix: matrix, row: row))
        matrix += own[k] &* own[k]
        row += own[k]
      }
      blocks.append(Block(dimensions: own, axes: axes, start: start, place: place, count: shape.count))
      place += shape.count
      largest = max(largest, shape.count)
    }
    (self.blocks, matrices, rows, self.largest) = (blocks, matrix, row, largest)
    (self.strides, whole) = (strides, count == 1)
  }

  /// For `accepts`.
  func check(_ method: String, _ parameter: String) throws(Failure) {
    try LinearAlgebra.require()
    for b in blocks {
      for a in b.axes where a.length > Kronecker.most {
        throw Failure(
          Status.shape,
          "\(method): an axis of \(a.length) elements is too long for a matrix of its own; lower "
            + "`\(parameter)`")
      }
    }
  }

  /// Copies the block out of the tensor x, or back into it; both dense, elements of `size` bytes.
  func gather(_ b: Block, _ x: UnsafeRawPointer, into y: UnsafeMutableRawPointer, _ size: Int) {
    forEachRun(b) { of, at, n in memcpy(y + at &* size, x + of &* size, n &* size) }
  }
  func scatter(_ b: Block, _ y: UnsafeRawPointer, into x: UnsafeMutableRawPointer, _ size: Int) {
    forEachRun(b) { of, at, n in memcpy(x + of &* size, y + at &* size, n &* size) }
  }
  private func forEachRun(_ b: Block, _ body: (_ of: Int, _ at: Int, _ count: Int) -> Void) {
    if whole { return body(0, 0, b.count) }
    let last = b.dimensions.count - 1, run = b.dimensions[last]
    guard b.count > 0 else { return }
    for r in 0..<(b.count / run) {
      var rest = r, of = b.start
      for k in (0..<last).reversed() {
        of += rest % b.dimensions[k] &* strides[k]
        rest /= b.dimensions[k]
      }
      body(of, r &* run, run)
    }
  }
}

extension Kronecker {
  /// Bytes of work space for the products of all blocks.
  func space(_ h: Hyper, _ size: Int) -> Int { Products<Float>.space(h, size, blocks.flatMap(\.axes).map(\.lines)) }
}

extension Products {
  /// Bytes of work space for products along one after the other, for elements of `size` bytes.
  static func space(_ h: Hyper, _ size: Int, _ list: [Slices]) -> Int {
    guard h.is("products", "bf16"), size == 4 else { return 0 }
    let bytes = list.map { lines in
      let longest = max(lines.length, lines.inner == 1 ? lines.outer : lines.inner)
      return BF16Products.space(lines: lines.length &+ longest, inner: longest)
    }
    return bytes.max() ?? 0
  }
  /// y ← m·x along the axis, or mᵀ·x; m is (length, length).
  func multiply(
    _ m: UnsafePointer<T>, transposed: Bool = false, _ x: UnsafePointer<T>, into y: UnsafeMutablePointer<T>,
    along lines: Slices
  ) throws(Failure) {
    let (length, inner, outer) = (lines.length, lines.inner, lines.outer)
    if inner == 1 {
      return try multiply(x, transposed: false, m, transposed: !transposed, into: y, outer, length, length)
    }
    for o in 0..<outer {
      let at = o &* length &* inner
      try multiply(m, transposed: transposed, x + at, into: y + at, length, inner, length)
    }
  }
  /// c ← alpha·(the sum over all lines of line·lineᵀ) + beta·c.
  func gram(
    _ x: UnsafePointer<T>, along lines: Slices, into c: UnsafeMutablePointer<T>, alpha: Double = 1, beta: Double = 0
  ) throws(Failure) {
    let (length, inner, outer) = (lines.length, lines.inner, lines.outer)
    if inner == 1 { return try gram(x, transposed: true, into: c, length, outer, alpha: alpha, beta: beta) }
    for o in 0..<outer {
      try gram(x + o &* length &* inner, into: c, length, inner, alpha: alpha, beta: o == 0 ? beta : 1)
    }
  }
}

extension Slices {
  /// x ← op(q)·x along the axis, or (`solves`) its inverse times x; q is the upper triangle of a square.
  func triangle<T: Real>(_ q: UnsafePointer<T>, transposed: Bool, solves: Bool, _ x: UnsafeMutablePointer<T>)
    throws(Failure)
  {
    if inner == 1 {
      return try LinearAlgebra.triangle(
        q, transposed: !transposed, left: false, solves: solves, x, outer, length)
    }
    for o in 0..<outer {
      try LinearAlgebra.triangle(
        q, transposed: transposed, left: true, solves: solves, x + o &* length &* inner, length, inner)
    }
  }
}

extension Parameter {
  /// For Kronecker.
  static let blockSize = Parameter.maybeInteger(
    "block_size", .atLeast(1), "longest side of the blocks that count as tensors of their own; none: one block",
    live: false)
}

/// The eigenvectors of a Gram matrix, descending, columns of a row-major matrix; where it is singular to the rounding
/// of T, those of its null space are ours (`Eigen.canonical`).
func eigenbasis<T: Real>(_ gram: UnsafePointer<T>, into q: UnsafeMutablePointer<T>, _ n: Int) throws(Failure) {
  let eigen = try LinearAlgebra.Eigen(gram, n).canonical(below: 8 * Double(n) * Double(T.ulpOfOne))
  for i in 0..<(n &* n) { q[i] = T(eigen.vectors[i]) }
}

/// Q ← the orthonormal factor of G·Q[:, order], one power iteration, in double. `order` nil: by descending diag(QᵀGQ),
/// ties by index; the order taken is returned.
@discardableResult
func powerIteration<T: Real>(_ gram: UnsafePointer<T>, _ q: UnsafeMutablePointer<T>, _ n: Int, sorts: Bool)
  throws(Failure) -> [Int]
{
  try Memory.ask(32 * n * n)
  let g = (0..<(n &* n)).map { Double(gram[$0]) }, old = (0..<(n &* n)).map { Double(q[$0]) }
  var moved = [Double](repeating: 0, count: n &* n)
  try LinearAlgebra.multiply(g, old, into: &moved, n, n, n)
  var order = Array(0..<n)
  if sorts {
    var estimate = [Double](repeating: 0, count: n)
    for i in 0..<n { for k in 0..<n { estimate[k] += old[i * n + k] * moved[i * n + k] } }
    order.sort { estimate[$0] > estimate[$1] || (estimate[$0] == estimate[$1] && $0 < $1) }
    var sorted = moved
    for i in 0..<n { for k in 0..<n { sorted[i * n + k] = moved[i * n + order[k]] } }
    moved = sorted
  }
  let new = try LinearAlgebra.orthonormal(moved, n, n, loss: Double(T.ulpOfOne) / 16)
  for i in 0..<(n &* n) { q[i] = T(new[i]) }
  return order
}

extension Flat {
  /// What rounding may leave of 1 in sums of products of T.
  static func rounding<T: Real>(_: T.Type) -> Double { 4 * Double(T.ulpOfOne) }
  /// Entries that are rounding beside the norm of all become 0.
  static func clearRounding<T: Real>(_ x: UnsafeMutablePointer<T>, _ n: Int) {
    let least = T(rounding(T.self) * norm(x, n))
    for i in 0..<n where abs(x[i]) <= least { x[i] = 0 }
  }
}
