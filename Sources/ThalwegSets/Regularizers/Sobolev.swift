import Glibc
import ThalwegCore

/// Sobolev norms of any order by the Fourier transform: how rough a tensor is.
///
///     m(ξ) = (1 + ‖scale·ξ‖²)^s, or ‖scale·ξ‖^(2s) if homogeneous, ξ the whole frequencies of every axis
///     value = λ/2·(1/N)·Σ m|û|², û = FFT(w), N the entries that are transformed
///     gradient = λ·IFFT(m·û)     prox = IFFT(ŵ/(1 + tλm))
///
/// `axes` names the transformed axes; none stands for all. Boundaries are periodic. s < 0 forgives high frequencies,
/// with homogeneous the mean too: m(0) = 0, as with zero_mode=false at any order.
/// Errors   TW_ERROR_SHAPE where an axis does not exist.
/// Source   Zhu, Hu, Lou and Yang, 2021, arXiv:2109.06255.
struct Sobolev: WholeRegularizer {
  static let method = Method(
    "sobolev", .regularizer, "Sobolev norms of any order by the Fourier transform: how rough a tensor is.",
    rule: """
      m(xi) = (1 + |scale*xi|^2)^s, or |scale*xi|^(2s) if homogeneous;  value = weight/2*(1/N)*sum m*|FFT(w)|^2
      gradient = weight*IFFT(m*FFT(w));  prox = IFFT(FFT(w)/(1 + t*weight*m));  m(0) = 0 with zero_mode=false
      """,
    source: "Zhu, Hu, Lou, Yang, 2021, arXiv:2109.06255",
    parameters: symbolParameters[..<2] + [.weight(1)] + symbolParameters[2...] + [
      .flag("zero_mode", true, "the mean counts")
    ],
    validate: { (h) throws(Failure) in try check(h, "sobolev") })
  /// What m is made of.
  static let symbolParameters: [Parameter] = [
    .number("s", 1, .any, "order"),
    .number("scale", 1, .above(0), "multiplies whole frequencies: 2*pi/L for a length L"),
    .flag("homogeneous", false, "leave the 1 out of m"),
    .list("axes", nil, "axes that are transformed; none: all", optional: true),
  ]
  static func check(_ h: Hyper, _ method: String) throws(Failure) {
    let axes = h.list("axes")
    guard axes.allSatisfy({ $0 == $0.rounded() && abs($0) < 64 }) else {
      throw Failure(Status.range, "\(method): `axes` must be whole numbers in [-63, 63]")
    }
    guard !h.hasLists || !axes.isEmpty else { throw Failure(Status.range, "\(method): `axes` is an empty list") }
  }
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try axesExist(h, shape, "sobolev") }
  static func axesExist(_ h: Hyper, _ shape: Shape, _ method: String) throws(Failure) {
    let axes = h.list("axes").map { Int($0) }
    for a in axes where a < -shape.ndim || a >= shape.ndim {
      throw Failure(Status.shape, "\(method): a tensor of rank \(shape.ndim) has no axis \(a)")
    }
    guard Set(axes.map { $0 < 0 ? $0 + shape.ndim : $0 }).count == axes.count else {
      throw Failure(Status.shape, "\(method): `axes` names an axis twice")
    }
  }

  let s, scale, weight: Double, homogeneous, mean: Bool, chosen: [Int]
  init(_ h: Hyper) {
    (s, scale, weight, homogeneous, mean) = (h.s, h.scale, h.weight, h.homogeneous, h.zero_mode)
    chosen = h.list("axes").map { Int($0) }
  }

  private func axes(_ shape: Shape) -> [Int] {
    chosen.isEmpty ? Array(0..<shape.ndim) : chosen.map { $0 < 0 ? $0 + shape.ndim : $0 }
  }
  /// m at every entry of the transform, and where the frequency is 0.
  private func symbol(_ shape: Shape) -> [(m: Double, isMean: Bool)] {
    let grid = Grid(shape), axes = axes(shape)
    return (0..<shape.count).map { i in
      let square = axes.reduce(0.0) { sum, a in
        let n = grid.sizes[a], k = i / grid.steps[a] % n, f = scale * Double(2 * k < n ? k : k - n)
        return sum + f * f
      }
      if square == 0, !mean { return (0, true) }
      if homogeneous { return (square == 0 && s != 0 ? 0 : pow(square, s), square == 0) }
      return (pow(1 + square, s), square == 0)
    }
  }
  private func transformed(_ x: [Double], _ shape: Shape) throws(Failure) -> Fourier {
    try Memory.ask(48 &* x.count)
    var u = Fourier(x)
    for a in axes(shape) { try u.transform(.along(a, shape), inverse: false) }
    return u
  }
  /// IFFT(f(m)·FFT(x)).
  func filtered(_ x: [Double], _ shape: Shape, _ f: (_ m: Double, _ isMean: Bool) -> Double) throws(Failure) -> [Double]
  {
    var u = try transformed(x, shape)
    let m = symbol(shape)
    for i in m.indices {
      let factor = f(m[i].m, m[i].isMean)
      u.re[i] *= factor
      u.im[i] *= factor
    }
    for a in axes(shape) { try u.transform(.along(a, shape), inverse: true) }
    return u.re
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let u = try transformed(doubles(w.v, w.count, "sobolev"), w.shape), m = symbol(w.shape)
    let n = axes(w.shape).reduce(1.0) { $0 * Double(w.shape.dimensions[$1]) }
    return weight / (2 * n) * m.indices.reduce(0) { $0 + m[$1].m * (u.re[$1] * u.re[$1] + u.im[$1] * u.im[$1]) }
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ factor: Double) throws(Failure) {
    let g = try filtered(doubles(w.w, w.count, "sobolev"), w.shape) { m, _ in m }
    for i in g.indices { w.v[i] += T(factor * weight * g[i]) }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) throws(Failure) {
    let x = try doubles(w.v, w.count, "sobolev"), k = t * weight
    if k == 0 { return }
    let u = try filtered(x, w.shape) { m, _ in 1 / (1 + k * m) }
    for i in u.indices { w.v[i] = T(u[i]) }
  }
}

/// Complex numbers, and their discrete Fourier transform along lines of any length.
struct Fourier {
  var re: [Double], im: [Double]
  init(_ x: [Double]) { (re, im) = (x, x.map { _ in 0 }) }

  mutating func transform(_ lines: Slices, inverse: Bool) throws(Failure) {
    let n = lines.length
    if n < 2 { return }
    let plan = try Plan(n)
    for s in 0..<lines.count {
      let at = (0..<n).map { lines.start(s) &+ $0 &* lines.inner }
      var x = at.map { re[$0] }, y = at.map { im[$0] }
      // the inverse: exchange real and imaginary parts before and after
      if inverse { plan.run(&y, &x) } else { plan.run(&x, &y) }
      let factor = inverse ? 1 / Double(n) : 1
      for (k, i) in at.enumerated() { (re[i], im[i]) = (x[k] * factor, y[k] * factor) }
    }
  }

  /// A length: a power of two directly, others as a convolution of such a length (Bluestein).
  private struct Plan {
    let n: Int, size: Int
    /// exp(−2πi·k/size), k < size/2.
    let turns: (re: [Double], im: [Double])
    /// exp(−πi·k²/n), and the transform of its conjugate laid out cyclically.
    private var chirp: (re: [Double], im: [Double]) = ([], []), kernel: (re: [Double], im: [Double]) = ([], [])

    init(_ n: Int) throws(Failure) {
      self.n = n
      let direct = n & (n - 1) == 0
      var size = 1
      while size < (direct ? n : 2 * n - 1) { size *= 2 }
      self.size = size
      try Memory.ask(64 &* size)
      func turn(_ k: Int, _ of: Int) -> (Double, Double) {
        let angle = -2 * Double.pi * Double(k) / Double(of)
        return (cos(angle), sin(angle))
      }
      let first = (0..<(size / 2)).map { turn($0, size) }
      turns = (first.map { $0.0 }, first.map { $0.1 })
      if direct { return }
      // k² modulo 2n keeps the angle small, step by step: (k+1)² = k² + 2k + 1
      var squares = [0]
      for k in 0..<(n - 1) { squares.append((squares[k] + 2 * k + 1) % (2 * n)) }
      let c = squares.map { turn($0, 2 * n) }
      chirp = (c.map { $0.0 }, c.map { $0.1 })
      kernel = ([Double](repeating: 0, count: size), [Double](repeating: 0, count: size))
      for k in 0..<n {
        for i in [k, (size - k) % size] { (kernel.re[i], kernel.im[i]) = (c[k].0, -c[k].1) }
      }
      radix2(&kernel.re, &kernel.im)
    }

    func run(_ x: inout [Double], _ y: inout [Double]) {
      if size == n { return radix2(&x, &y) }
      var a = [Double](repeating: 0, count: size), b = a
      for k in 0..<n {
        a[k] = x[k] * chirp.re[k] - y[k] * chirp.im[k]
        b[k] = x[k] * chirp.im[k] + y[k] * chirp.re[k]
      }
      radix2(&a, &b)
      for k in 0..<size {
        (a[k], b[k]) = (a[k] * kernel.re[k] - b[k] * kernel.im[k], a[k] * kernel.im[k] + b[k] * kernel.re[k])
      }
      radix2(&b, &a)  // the inverse, but for the factor
      for k in 0..<n {
        let (p, q) = (a[k] / Double(size), b[k] / Double(size))
        x[k] = p * chirp.re[k] - q * chirp.im[k]
        y[k] = p * chirp.im[k] + q * chirp.re[k]
      }
    }

    private func radix2(_ x: inout [Double], _ y: inout [Double]) {
      var j = 0
      for i in 1..<max(1, size) {  // bit-reversed order
        var bit = size / 2
        while j & bit != 0 {
          j ^= bit
          bit /= 2
        }
        j |= bit
        if i < j {
          x.swapAt(i, j)
          y.swapAt(i, j)
        }
      }
      var half = 1
      while half < size {
        let stride = size / (2 * half)
        for start in Swift.stride(from: 0, to: size, by: 2 * half) {
          for k in 0..<half {
            let (c, s) = (turns.re[k * stride], turns.im[k * stride])
            let i = start + k, o = i + half
            let (p, q) = (x[o] * c - y[o] * s, x[o] * s + y[o] * c)
            (x[o], y[o]) = (x[i] - p, y[i] - q)
            (x[i], y[i]) = (x[i] + p, y[i] + q)
          }
        }
        half *= 2
      }
    }
  }
}
