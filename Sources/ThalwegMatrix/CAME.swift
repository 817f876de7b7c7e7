import ThalwegCore

/// CAME: Adafactor with a momentum that is divided by how far it strays from the updates.
///
///     q = g² + ε₁;   r, c ← means of the rows and columns of q, rate β₂;   u = g/√(r/mean(r))/√c
///     u ← u/max(1, rms(u)/clip_threshold);   m ← β₁·m + (1 − β₁)·u
///     r', c' ← means of (u − m)² + ε₂, rate β₃;   θ ← θ·(1 − lr·wd) − lr·m/√(r'/mean(r'))/√c'
///
/// State    m; r, c, r' and c' over the last two axes, or v for tensors of rank 0 and 1, where u = g/√v and the step
///          is m.
/// Differs  nothing from came_pytorch. No bias correction.
/// Source   Luo et al., 2023, arXiv:2307.02047.
struct CAME: WholeRule {
  static let method = Method(
    "came", .optimizer, "Adafactor with a momentum that is divided by how far it strays from the updates.",
    rule: """
      r, c <- row and column means of g^2 + eps1, rate beta2;  u = g/sqrt(r/mean(r))/sqrt(c) (rank 0, 1: g/sqrt(v))
      u <- u/max(1, rms(u)/clip_threshold);  m <- beta1*m + (1 - beta1)*u
      R, C <- row and column means of (u - m)^2 + eps2, rate beta3
      theta <- theta*(1 - lr*weight_decay) - lr*m/sqrt(R/mean(R))/sqrt(C) (rank 0, 1: lr*m)
      """,
    source: "Luo et al., 2023, arXiv:2307.02047",
    parameters: [
      .lr(2e-4), .rate("beta1", 0.9, "rate of the update"), .rate("beta2", 0.999, "rate of the squares"),
      .rate("beta3", 0.9999, "rate of the instability"),
      .number("eps1", 1e-30, .above(0), "added to the squares"),
      .number("eps2", 1e-16, .above(0), "added to the instability"),
      .number("clip_threshold", 1, .above(0), "largest RMS of an update"), .weightDecay(0, "decoupled weight decay"),
    ],
    slots: [
      .moment("exp_avg", "momentum m of the update"), Slot("exp_avg_sq_row", "second moment of the rows r"),
      Slot("exp_avg_sq_col", "second moment of the columns c"), Slot("exp_avg_res_row", "instability of the rows R"),
      Slot("exp_avg_res_col", "instability of the columns C"),
      Slot("exp_avg_sq", "second moment v of tensors of rank 0 and 1"),
    ], needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let all = method.slots
    return [all[0]]
      + (shape.ndim >= 2
        ? FactoredMoment.slots(all[1], all[2], shape) + FactoredMoment.slots(all[3], all[4], shape) : [all[5]])
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { FactoredMoment.workspace(shape, size) }

  let beta1, beta2, beta3, eps1, eps2, threshold: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, beta3, eps1, eps2, threshold) = (h.beta1, h.beta2, h.beta3, h.eps1, h.eps2, h.clip_threshold)
  }

  /// u of a tensor of rank 0 or 1, in double: squares may be beyond the largest float.
  struct Direction: ElementOperation {
    let keep, eps: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let a = x.wide, old = s[0].wide
      let low = moved(old.low, a.low), high = L.width == 16 ? moved(old.high, a.high) : low
      s[0] = L.min(L(wide: low, high), Double(L.Element.greatestFiniteMagnitude))
      x = L(wide: a.low / low.squareRoot(), L.width == 16 ? a.high / high.squareRoot() : a.high)
    }
    @inline(__always) private func moved(_ old: SIMD8<Double>, _ g: SIMD8<Double>) -> SIMD8<Double> {
      let square: SIMD8<Double> = g * g + SIMD8<Double>(repeating: eps)
      return SIMD8<Double>(repeating: keep) * old + SIMD8<Double>(repeating: 1 - keep) * square
    }
  }
  /// m of the update that is shortened first.
  struct Momentum: ElementOperation {
    let share, keep: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = keep * s[0] + (1 - keep) * (share * x)
      s[0] = x
    }
  }

  func apply<T: Real>(_ t: Whole<T>) {
    guard t.count > 0 else { return }
    guard let f = FactoredMoment(t.shape) else {
      t.change(Direction(keep: beta2, eps: eps1), slots: 1..<2)
      let share = shareOfUpdate(t.sums(SquaredValues()).first / Double(t.count), threshold)
      return t.change(Momentum(share: share, keep: beta1), slots: 0..<1)
    }
    let rate = FactoredMoment.Rate(keep: beta2, new: 1 - beta2, eps: eps1)
    let trust = FactoredMoment.Rate(keep: beta3, new: 1 - beta3, eps: eps2)
    let (m, r, c) = (t.slots[0], t.slots[1], t.slots[2]), (R, C) = (t.slots[3], t.slots[4])
    let share = shareOfUpdate(f.take(t.v, r, c, rate, t.workspace) / Double(t.count), threshold)
    f.all.forEach { part, list in
      let room: FactoredMoment.Room<T> = f.room(t.workspace, part)
      for b in list {
        let at = b * f.rows * f.columns, r = r + b * f.rows, mean = Flat.sum(r, f.rows) / Double(f.rows)
        f.factors(r, c + b * f.columns, mean: mean, scale: share, into: room)
        _ = f.take(C + b * f.columns, trust, room) { some, sums in
          let i = some.lowerBound, first = at + i * f.columns
          CAME.average(
            t.v + first, m + first, R + (b * f.rows + i), some.count, f.columns, room.row + i, room.column, beta1,
            trust, sums)
        }
      }
    }
    f.divide(m, R, C, t.workspace, into: t.v)
  }

  /// m of some rows of g; their distances from the update move r and are added to the sums of the columns.
  @inline(never)
  @_specialize(where T == Float)
  @_specialize(where T == Double)
  private static func average<T: Real>(
    _ g: UnsafePointer<T>, _ m: UnsafeMutablePointer<T>, _ r: UnsafeMutablePointer<T>, _ rows: Int, _ n: Int,
    _ row: UnsafePointer<T>, _ column: UnsafePointer<T>, _ keep: Double, _ rate: FactoredMoment.Rate,
    _ sums: UnsafeMutablePointer<Double>
  ) {
    typealias L = T.Vector
    typealias D = SIMD8<Double>
    let k = T(keep), new = T(1 - keep)
    for i in 0..<rows {
      let x = g + i * n, y = m + i * n, factor = L(Double(row[i]))
      var low = D(repeating: 0), high = low, rest = 0.0
      @inline(__always) func squares(_ a: D, _ j: Int) -> D {
        let square = a * a
        (D.load(sums + j) + square).store(sums + j)
        return square
      }
      var j = 0
      while j &+ L.width <= n {
        let u = L.load(x + j) * factor * L.load(column + j)
        let next = keep * L.load(y + j) + (1 - keep) * u
        next.store(y + j)
        let (a, b) = (u.wide, next.wide)
        low += squares(a.low - b.low, j)
        if L.width == 16 { high += squares(a.high - b.high, j &+ 8) }
        j &+= L.width
      }
      while j < n {
        let u = x[j] * row[i] * column[j]
        y[j] = k * y[j] + new * u
        let away = Double(u) - Double(y[j])
        rest += away * away
        sums[j] += away * away
        j &+= 1
      }
      r[i] = T(rate(Double(r[i]), ((low + high).sum() + rest) / Double(n)))
    }
  }
}

/// What shortens an update of this mean square whose root mean square is above the threshold.
func shareOfUpdate(_ square: Double, _ threshold: Double) -> Double {
  let rms = square.squareRoot()
  return rms <= threshold ? 1 : threshold / rms
}
