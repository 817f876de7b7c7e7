import ThalwegCore

/// Timesteps of diffusion from easy to hard: the latest first, and one more cluster whenever the loss stops to fall.
///
///     stage n of N samples from [b_{N−n}, b_N); the value is b_{N−n}
///     loss < best: best ← loss, bad ← 0;   else bad ← bad + 1
///     bad > patience and n < N: n ← n + 1, best ← ∞, bad ← 0
///
/// It watches `loss` (or `metric`), one number an iteration; NaN is no improvement. The clusters are equal in t, from 0
/// to `total`, unless `boundaries` gives their N + 1 ends (equal in log-SNR, say). After the last stage training is
/// ordinary.
/// State    stage, best loss, bad iterations.
/// Differs  the loss is not smoothed; an independent implementation averages it.
/// Source   Kim et al., 2025, arXiv:2403.10348.
struct TimestepCurriculum: Schedule {
  static let method = Method(
    "timestep_curriculum", .schedule, "The least timestep of diffusion to train on: from easy to hard by clusters.",
    rule: """
      stage n of N: timesteps from [b_(N-n), b_N);  value = b_(N-n)
      loss < best: best <- loss, bad <- 0; else bad <- bad + 1
      bad > patience and n < N: n <- n + 1, best <- inf, bad <- 0
      """,
    source: "Kim, Go, Kwon, Kim, 2025, arXiv:2403.10348",
    parameters: [
      .steps("num_clusters", "N, clusters of timesteps", 20, from: 1),
      .steps("patience", "iterations without improvement that are tolerated", 200),
      .number("total", 1000, .above(0), "timesteps").fixed,
      .list("boundaries", nil, "ends of the clusters, increasing; none: equal in t", optional: true),
    ],
    validate: { (h) throws(Failure) in
      let b = h.list("boundaries"), wanted = h.integer("num_clusters") + 1
      guard
        !h.given("boundaries")
          || (b.count == wanted && zip(b, b.dropFirst()).allSatisfy { $0 < $1 })
      else {
        throw Failure(
          Status.range,
          "timestep_curriculum: `boundaries` must be \(wanted) increasing numbers, got \(b.count)"
        )
      }
    })
  private let clusters, patience, total: Double
  private let boundaries: [Double]
  private var stage = 1.0, best = Double.infinity, bad = 0.0

  init(_ h: Hyper) {
    (clusters, patience, total, boundaries) = (h.num_clusters, h.patience, h.total, h.list("boundaries"))
  }

  func value(_ k: Double) -> Double {
    let first = clusters - stage
    return boundaries.isEmpty ? total * first / clusters : boundaries[min(max(Int(first), 0), boundaries.count - 1)]
  }

  mutating func observe(_ what: String, _ loss: Double) throws(Failure) -> Bool {
    guard what == "loss" || what == "metric" else { return false }
    if loss < best { (best, bad) = (loss, 0) } else { bad += 1 }
    if bad > patience, stage < clusters { (stage, best, bad) = (stage + 1, .infinity, 0) }
    return true
  }

  var memory: [Double] {
    get { [stage, best, bad] }
    set {
      if newValue.count == 3 {
        // what was saved may hold anything
        (stage, best, bad) = (min(max(newValue[0].rounded(), 1), clusters), newValue[1], newValue[2])
      }
    }
  }
}
