/// Products of matrices in the working precision or, of floats alone, with operands rounded to bfloat16, which some
/// processors multiply several times as fast.
public struct Products<T: Real> {
  private let narrow: BF16Products?
  /// `space` is what `BF16Products.space` asks for.
  public init(narrow: Bool, _ space: UnsafeMutableRawPointer) {
    self.narrow = narrow && !T.isDouble ? BF16Products(space) : nil
  }
  /// Those that the parameter `products` chooses.
  public init(_ h: Hyper, _ space: UnsafeMutableRawPointer) {
    self.init(narrow: h.is("products", "bf16"), space)
  }
  /// Operands are rounded.
  public var isNarrow: Bool { narrow != nil }

  /// c ← alpha·a·aᵀ + beta·base, or aᵀ·a; `base` is c itself unless it is given.
  public func gram(
    _ a: UnsafePointer<T>, transposed: Bool = false, symmetric: Bool = false, into c: UnsafeMutablePointer<T>,
    _ n: Int, _ k: Int, alpha: Double = 1, beta: Double = 0, base: UnsafePointer<T>? = nil
  ) throws(Failure) {
    if let narrow {
      try narrow.gram(
        float(a), transposed: transposed, into: float(c), n, k, alpha: alpha, beta: beta, base: base.map(float))
    } else {
      if let base { c.update(from: base, count: n &* n) }
      try LinearAlgebra.gram(a, transposed: transposed, symmetric: symmetric, into: c, n, k, alpha: alpha, beta: beta)
    }
  }
  public func multiply(
    _ a: UnsafePointer<T>, transposed ta: Bool = false, _ b: UnsafePointer<T>, transposed tb: Bool = false,
    into c: UnsafeMutablePointer<T>, _ m: Int, _ n: Int, _ k: Int, alpha: Double = 1, beta: Double = 0
  ) throws(Failure) {
    if let narrow {
      try narrow.multiply(
        float(a), transposed: ta, float(b), transposed: tb, into: float(c), m, n, k, alpha: alpha, beta: beta)
    } else {
      try LinearAlgebra.multiply(a, transposed: ta, b, transposed: tb, into: c, m, n, k, alpha: alpha, beta: beta)
    }
  }
  private func float(_ p: UnsafePointer<T>) -> UnsafePointer<Float> {
    UnsafeRawPointer(p).assumingMemoryBound(to: Float.self)
  }
  private func float(_ p: UnsafeMutablePointer<T>) -> UnsafeMutablePointer<Float> {
    UnsafeMutableRawPointer(p).assumingMemoryBound(to: Float.self)
  }
}

extension Parameter {
  /// Of methods whose time is products.
  public static let products = Parameter.choice(
    "products", ["working", "bf16"], "precision of the products: the parameters', or bfloat16 (f32 only)", live: false)
}
