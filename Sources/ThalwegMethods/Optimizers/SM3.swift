import ThalwegCore

/// SM3: one number for every row, column, ... in place of a second moment for every element.
///
///     ν = the least of an element's numbers + g²,  or β·least + (1 − β)·g²
///     number of a slice ← the largest ν in it (with β, or the number before);   u = g/√(ν + ε)
///     m ← μ·m + (1 − μ)·u with momentum, else u;   θ ← θ − lr·m
///
/// State    a vector for each axis; m with momentum.
/// Differs  nothing from pytorch-optimizer; β is an addition of the ports. 0/0 is 0. A tensor of rank 0 is a vector of
///          one element, and a vector is AdaGrad.
/// Source   Anil, Gupta, Koren and Singer, 2019, arXiv:1901.11150 (SM3-II).
struct SM3: WholeRule {
  static let method = Method(
    "sm3", .optimizer, "One number for every slice along an axis in place of a second moment for every element.",
    rule: """
      nu = least number of the slices of an element + g^2, or beta*least + (1 - beta)*g^2
      number of a slice <- largest nu in it (beta > 0: or the number before)
      u = g/sqrt(nu + eps);  m <- momentum*m + (1 - momentum)*u, or u;  theta <- theta - lr*m
      """,
    source: "Anil, Gupta, Koren, Singer, 2019, arXiv:1901.11150",
    parameters: [
      .lr(0.1), .rate("momentum", 0, "rate of the average of the update").fixed,
      .rate("beta", 0, "rate of the second moment; 0: sums"), .eps(1e-30, "added under the root"),
    ],
    slots: [
      Slot("accumulator", "the numbers of the slices along each axis"),
      .moment("momentum_buffer", "average m of the update"),
    ])

  private static func axes(_ shape: Shape) -> [Int] { shape.ndim == 0 ? [1] : shape.dimensions }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let momentum: Double = h.momentum
    return axes(shape).enumerated().map {
      Slot("accumulator_\($0.offset)", "the numbers of the slices along axis \($0.offset)", count: $0.element)
    } + (momentum > 0 ? [method.slots[1]] : [])
  }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    shape.ndim < 2 || shape.count == 0 ? 0 : Lines(shape).numbers &* size
  }

  let momentum, beta, eps: Double

  init(_ h: Hyper, _ c: StepContext) { (momentum, beta, eps) = (h.momentum, h.beta, h.eps) }

  func apply<T: Real>(_ t: Whole<T>) {
    guard t.count > 0 else { return }
    if t.shape.ndim < 2 { return t.change(Elements(rule: self), slots: 0..<(momentum > 0 ? 2 : 1)) }
    let lines = Lines(t.shape), least = t.workspace.assumingMemoryBound(to: T.self)
    // the least number of the axes of a line, for every element of it
    lines.elements { j, axis, k in
      let number = t.slots[axis][k]
      least[j] = axis == lines.cut || number < least[j] || number != number ? number : least[j]
    }
    lines.parts.forEach { part, range in walk(t, lines, least, lines.found(least, part), range) }
    collect(t, lines, least)
  }

  /// ν of elements with this least number.
  @inline(__always) private func moved<L: Lane>(_ least: L, _ g: L) -> L {
    beta == 0 ? least + g * g : beta * least + (1 - beta) * (g * g)
  }
  @inline(__always) private func direction<L: Lane>(_ g: L, _ nu: L) -> L { (nu + eps).squareRoot().divide(g) }
  @inline(__always) private func averaged<L: Lane>(_ m: L, _ u: L) -> L { momentum * m + (1 - momentum) * u }

  /// A vector has a number for every element.
  struct Elements: ElementOperation {
    let rule: SM3
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let nu = rule.moved(s[0], x)
      s[0] = rule.beta == 0 ? nu : L.max(s[0], nu)
      x = rule.direction(x, nu)
      guard rule.momentum > 0 else { return }
      x = rule.averaged(s[1], x)
      s[1] = x
    }
  }

  /// A tensor of rank 2 or more as lines of its last axis, and of more axes where that is short: elements of a line
  /// share their places along the leading axes.
  private struct Lines {
    let axes: [Int], cut: Int, length: Int
    let parts: Parts

    init(_ shape: Shape) {
      axes = shape.dimensions
      var cut = axes.count - 1, length = axes[cut]
      while length < 64, cut > 1 {
        cut -= 1
        length *= axes[cut]
      }
      (self.cut, self.length) = (cut, length)
      parts = Parts(shape.count / length, of: length)
    }
    private var leading: Int { axes[..<cut].reduce(0, +) }
    /// What is found in a part: the largest ν of every element of a line, then those of the leading axes.
    private var width: Int { length + leading }
    /// Numbers at work: the least ones of a line, and what is found in every part.
    var numbers: Int { length + parts.count * width }
    func found<T: Real>(_ least: UnsafeMutablePointer<T>, _ part: Int) -> UnsafeMutablePointer<T> {
      least + length + part * width
    }

    /// Calls `body` with every element of a line, for each of its axes, and where on it the element lies.
    func elements(_ body: (_ j: Int, _ axis: Int, _ place: Int) -> Void) {
      var inner = length
      for axis in cut..<axes.count {
        inner /= axes[axis]
        var j = 0
        while j < length {
          for place in 0..<axes[axis] {
            for i in j..<(j + inner) { body(i, axis, place) }
            j += inner
          }
        }
      }
    }
  }

  /// The lines of a part: the update, and the largest ν.
  private func walk<T: Real>(
    _ t: Whole<T>, _ lines: Lines, _ least: UnsafeMutablePointer<T>, _ found: UnsafeMutablePointer<T>,
    _ range: Swift.Range<Int>
  ) {
    let n = lines.length, cut = lines.cut
    found.initialize(repeating: 0, count: n + lines.axes[..<cut].reduce(0, +))
    withUnsafeTemporaryAllocation(of: Int.self, capacity: cut) { place in
      var rest = range.lowerBound
      for k in (0..<cut).reversed() {
        place[k] = rest % lines.axes[k]
        rest /= lines.axes[k]
      }
      for line in range {
        var number = t.slots[0][place[0]]
        for k in 1..<cut {
          let other = t.slots[k][place[k]]
          number = other < number || other != other ? other : number
        }
        let m = momentum > 0 ? t.slots[lines.axes.count] + line * n : nil
        let top = move(t.v + line * n, m, n, number, least, found)
        var first = found + n
        for k in 0..<cut {
          raise(&first[place[k]], top)
          first += lines.axes[k]
        }
        var k = cut - 1
        place[k] += 1
        while k > 0, place[k] == lines.axes[k] {
          place[k] = 0
          k -= 1
          place[k] += 1
        }
      }
    }
  }
  @inline(__always) private func raise<T: Real>(_ x: inout T, _ y: T) { x = y > x || y != y ? y : x }

  /// One line; returns its largest ν.
  private func move<T: Real>(
    _ v: UnsafeMutablePointer<T>, _ m: UnsafeMutablePointer<T>?, _ n: Int, _ number: T,
    _ least: UnsafeMutablePointer<T>, _ found: UnsafeMutablePointer<T>
  ) -> T {
    typealias L = T.Vector
    var top = L(0), i = 0
    while i < n {
      let left = n &- i, g = L.load(v + i, first: left)
      let nu = moved(L.min(L.load(least + i, first: left), Double(number)), g)
      L.max(L.load(found + i, first: left), nu).store(found + i, first: left)
      top = L.max(top, nu)
      var u = direction(g, nu)
      if let m {
        u = averaged(L.load(m + i, first: left), u)
        u.store(m + i, first: left)
      }
      u.store(v + i, first: left)
      i &+= L.width
    }
    return T(top.largest)
  }

  /// The numbers of all axes, of what the parts found.
  private func collect<T: Real>(_ t: Whole<T>, _ lines: Lines, _ least: UnsafeMutablePointer<T>) {
    let axes = lines.axes, n = lines.length, found = lines.found(least, 0)
    let width = n + axes[..<lines.cut].reduce(0, +)
    for part in 1..<lines.parts.count {
      let more = lines.found(least, part)
      for i in 0..<width { raise(&found[i], more[i]) }
    }
    if beta == 0 {
      for (k, length) in axes.enumerated() { t.slots[k].update(repeating: 0, count: length) }
    }
    lines.elements { j, axis, k in raise(&t.slots[axis][k], found[j]) }
    var first = found + n
    for k in 0..<lines.cut {
      for i in 0..<axes[k] { raise(&t.slots[k][i], first[i]) }
      first += axes[k]
    }
  }
}
