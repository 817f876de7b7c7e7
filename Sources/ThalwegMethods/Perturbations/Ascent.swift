import ThalwegCore

/// What sharpness-aware perturbations share: a move along the gradient in some metric, and back.

/// e = scale·t²·g with t = 1, or t = |θ| + η.
struct Metric: Sendable {
  var adapts = false, eta = 0.0
  @inline(__always) func t<L: Lane>(_ x: L, _ g: L) -> L { adapts ? (x.magnitude + eta) * g : g }
  @inline(__always) func direction<L: Lane>(_ x: L, _ g: L) -> L {
    adapts ? (x.magnitude + eta) * ((x.magnitude + eta) * g) : g
  }
}

/// Σ (t·g)².
struct MetricNorm: ElementSum {
  let metric: Metric
  @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    let d = metric.t(x, g)
    sums.add(0, d, times: d)
  }
}

/// Keeps the parameters in the first slot and moves them by e.
struct Ascend: ElementOperation {
  let metric: Metric, scale: Double
  init(_ metric: Metric = Metric(), scale: Double) { (self.metric, self.scale) = (metric, scale) }
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = x
    x = x + scale * metric.direction(x, g)
  }
}

/// The same, with the gradient kept in the second slot.
struct KeepAndAscend: ElementOperation {
  let metric: Metric, scale: Double
  init(_ metric: Metric = Metric(), scale: Double) { (self.metric, self.scale) = (metric, scale) }
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = x
    s[1] = g
    x = x + scale * metric.direction(x, g)
  }
}

/// Moves along what lies in the second slot, with the parameters kept in the first.
struct AscendAlong: ElementOperation {
  let scale: Double
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    s[0] = x
    x = x + scale * s[1]
  }
}

/// Σ a², Σ a·g and Σ g² of a slot and the gradient.
struct SlotProducts: ElementSum {
  @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, s[0], times: s[0])
    sums.add(1, s[0], times: g)
    sums.add(2, g, times: g)
  }
}

/// Σ s₀², of a slot.
struct SlotNorm: ElementSum {
  @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
    sums.add(0, s[0], times: s[0])
  }
}

/// Whether a norm is that of all tensors together, or of each.
let scopes = ["tensor", "global"]

/// radius/(‖·‖ + ε); 0 where there is nothing to move along.
func perLength(_ radius: Double, _ norm: Double, _ eps: Double) -> Double { norm == 0 ? 0 : radius / (norm + eps) }

let homeSlot = Slot.home("point", "the parameters while they are away")
let gradientSlot = Slot.temporary("gradient", "the gradient at the parameters")
