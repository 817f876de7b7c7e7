import Glibc
import ThalwegCore

/// A schedule refined from the gradient norms of an earlier run.
///
///     Ĝ = the norms behind a running median of width 2⌊⌊frac·T⌋/2⌋ + 1
///     w_t = Ĝ_t^(−power);   η_t = w_t·Σ_{s > t} w_s;   normalize: η ← η / max η
///     total T' given: η' at t' = 1 … T' is η at t = t'·T/T', linear between its entries, the first before the first
///     value at step k = lr·η_{k+1}; after the last entry it stays at that
///
/// State    none.
/// Differs  as the authors' code (adaptive_scheduling) up to the norming: they divide by Σ w. At its ends the median
///          sees the first value to the left, and the reflection without the last value to the right. Norms are at
///          least 1e-12 of their median. T = 1 gives 1.
///          `lr` multiplies (the method's lr_max).
/// Source   Defazio, Cutkosky, Mehta and Mishchenko, 2023, arXiv:2310.07831: power 2 with l2 norms for SGD, 1 with l1
///          norms for Adam.
struct RefinedSchedule: Schedule {
  static let method = Method(
    "refined_schedule", .schedule, "A schedule refined from the gradient norms of an earlier run.",
    rule: """
      G = the norms behind a running median of width 2*floor(floor(frac*T)/2) + 1
      w_t = G_t^(-power);  eta_t = w_t * sum of the later w;  normalize: eta <- eta / max(eta)
      total: eta is resampled for a run of so many steps, linearly in t/T
      value at step k = lr * eta_(k+1), and the last entry (eta_T = 0) after it
      """,
    source: "Defazio, Cutkosky, Mehta, Mishchenko, 2023, arXiv:2310.07831",
    parameters: [
      .list("norms", nil, "gradient norms of a run, one a step"), .lr(1),
      .number("frac", 0.1, .rate, "width of the median, as a share of the run"),
      .number("power", 2, .above(0), "2 for SGD (l2 norms), 1 for Adam (l1 norms)"),
      .flag("normalize", true, "the largest value of the run with the norms is lr"), length,
    ],
    validate: { (h) throws(Failure) in
      let norms = h.list("norms")
      guard !norms.isEmpty, norms.allSatisfy({ $0 >= 0 && $0.isFinite }) else {
        throw Failure(
          Status.range, "refined_schedule: `norms` needs at least one number, and none that is negative or infinite")
      }
    })
  private static let length: Parameter = {
    var p = Parameter.steps("total", "length of the new run, where it is not that of the norms", from: 1)
    (p.standard, p.optional, p.maximum) = (Value.none, true, 0x1p24)
    return p
  }()
  private let lr: Double
  private let table: [Double]

  init(_ h: Hyper) {
    lr = h.lr
    let norms = h.list("norms"), T = norms.count
    let power: Double = h.power, frac: Double = h.frac
    var G = runningMedian(norms, half: Int(frac * Double(T)) / 2)
    let middle = median(G)
    let floor = 1e-12 * (middle > 0 ? middle : 1)
    for t in G.indices { G[t] = max(G[t], floor) }
    var eta = [Double](repeating: 0, count: T), tail = 0.0
    for t in G.indices.reversed() {
      let w = pow(G[t], -power)
      eta[t] = w * tail
      tail += w
    }
    if h.normalize, let top = eta.max() { eta = T > 1 ? eta.map { $0 / top } : [1] }
    table = h.has("total") ? resampled(eta, h.integer("total")) : eta
  }

  func value(_ k: Double) -> Double {
    guard let last = table.last else { return lr }
    return lr * (k < Double(table.count) ? table[max(0, Int(k))] : last)
  }
}

/// A table of T entries for a run of another length.
private func resampled(_ eta: [Double], _ total: Int) -> [Double] {
  (1...max(1, total)).map { k in
    let t = Double(k) * Double(eta.count) / Double(total) - 1, i = min(max(0, Int(t)), eta.count - 1)  // from 0
    let next = min(i + 1, eta.count - 1)
    return t <= 0 ? eta[0] : eta[i] + (t - Double(i)) * (eta[next] - eta[i])
  }
}

private func median(_ x: [Double]) -> Double {
  let s = x.sorted(), n = s.count
  return n == 0 ? 0 : n % 2 == 1 ? s[n / 2] : (s[n / 2 - 1] + s[n / 2]) / 2
}

/// The median of 2·half + 1 neighbours: a sorted window that moves along.
private func runningMedian(_ x: [Double], half: Int) -> [Double] {
  guard half > 0, let first = x.first else { return x }
  let n = x.count
  func at(_ i: Int) -> Double { i < 0 ? first : x[i < n ? i : max(0, 2 * n - 2 - i)] }
  var window = (-half...half).map(at).sorted()
  func place(_ v: Double) -> Int {
    var low = 0, high = window.count
    while low < high {
      let middle = (low + high) / 2
      if window[middle] < v { low = middle + 1 } else { high = middle }
    }
    return low
  }
  var out = [window[half]]
  for i in 1..<max(1, n) {
    window.remove(at: min(place(at(i - 1 - half)), window.count - 1))
    let v = at(i + half)
    window.insert(v, at: place(v))
    out.append(window[half])
  }
  return out
}
