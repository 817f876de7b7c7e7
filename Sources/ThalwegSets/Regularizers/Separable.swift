import ThalwegCore

/// The L1 penalty, the lasso.
///
///     value = λ·Σ|w|     gradient = λ·sign(w), sign(0) = 0     prox = S(w, tλ),  S(x, k) = sign(x)·max(|x| − k, 0)
///
/// Differs  nothing from its peers. Only the prox gives exact zeros: along the subgradient the iterate swings around
///          zero in a band of about lr·λ, and a larger weight can raise Σ|w|.
/// Source   Tibshirani, 1996.
struct L1: ElementRegularizer {
  static let method = Method(
    "l1", .regularizer, "The L1 penalty, the lasso: as a prox it sets small weights exactly to zero.",
    rule: """
      value = weight*sum|w|;  gradient = weight*sign(w), sign(0) = 0
      prox = sign(w)*max(|w| - t*weight, 0)
      """,
    source: "Tibshirani, 1996", parameters: [.number("weight", 1e-4, .atLeast(0), "coefficient")])

  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  @inline(__always) func value<L: Lane>(_ w: L) -> L { weight * w.magnitude }
  @inline(__always) func gradient<L: Lane>(_ w: L) -> L { weight * w.sign }
  @inline(__always) func prox<L: Lane>(_ w: L, _ t: Double) -> L { t * weight == 0 ? w : w.shrunk(by: t * weight) }
  @inline(__always) func prox<L: Lane>(_ w: L, steps t: L) -> L { w.shrunk(by: weight * t) }
  var coupledFolds: Folds? { Folds(.plusSign(weight)) }
  func proxFolds(_ t: Double) -> Folds? { Folds(t * weight == 0 ? .times(1) : .shrink(t * weight)) }
}

/// The squared L2 penalty, ridge.
///
///     value = λ/2·Σw²     gradient = λ·w     prox = w / (1 + tλ)
///
/// Differs  some libraries leave out the half (Keras). Its gradient is the coupled weight decay of SGD and Adam.
/// Source   Hoerl and Kennard, 1970.
struct L2: ElementRegularizer {
  static let method = Method(
    "l2", .regularizer, "The squared L2 penalty, ridge; its gradient is coupled weight decay.",
    rule: "value = weight/2*sum w^2;  gradient = weight*w;  prox = w/(1 + t*weight)", source: "Hoerl, Kennard, 1970",
    parameters: [.number("weight", 1e-4, .atLeast(0), "coefficient; the penalty is weight/2 times the squared norm")])

  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  @inline(__always) func value<L: Lane>(_ w: L) -> L { (weight / 2) * (w * w) }
  @inline(__always) func gradient<L: Lane>(_ w: L) -> L { weight * w }
  @inline(__always) func prox<L: Lane>(_ w: L, _ t: Double) -> L { w * (1 / (1 + t * weight)) }
  @inline(__always) func prox<L: Lane>(_ w: L, steps t: L) -> L { w / (1 + weight * t) }
  var coupledFolds: Folds? { Folds(.plus(weight)) }
  func proxFolds(_ t: Double) -> Folds? { Folds(.times(1 / (1 + t * weight))) }
}

/// The elastic net: L1 and L2 together.
///
///     value = λ·(r·Σ|w| + (1 − r)/2·Σw²)     gradient = λ·(r·sign(w) + (1 − r)·w)     prox = S(w, tλr) / (1 + tλ(1 −
///     r))
///
/// Differs  nothing from scikit-learn's alpha and l1_ratio.
/// Source   Zou and Hastie, 2005.
struct ElasticNet: ElementRegularizer {
  static let method = Method(
    "elastic_net", .regularizer, "The elastic net: L1 and L2 penalties together.",
    rule: """
      value = weight*(l1_ratio*sum|w| + (1 - l1_ratio)/2*sum w^2)
      gradient = weight*(l1_ratio*sign(w) + (1 - l1_ratio)*w)
      prox = sign(w)*max(|w| - t*weight*l1_ratio, 0)/(1 + t*weight*(1 - l1_ratio))
      """,
    source: "Zou, Hastie, 2005",
    parameters: [
      .number("weight", 1e-4, .atLeast(0), "coefficient"),
      .number("l1_ratio", 0.5, .within(0, 1), "share of the L1 part"),
    ])

  let sparse, ridge: Double
  init(_ h: Hyper) {
    let weight: Double = h.weight, ratio: Double = h.l1_ratio
    (sparse, ridge) = (weight * ratio, weight * (1 - ratio))
  }

  @inline(__always) func value<L: Lane>(_ w: L) -> L { sparse * w.magnitude + (ridge / 2) * (w * w) }
  @inline(__always) func gradient<L: Lane>(_ w: L) -> L { sparse * w.sign + ridge * w }
  @inline(__always) func prox<L: Lane>(_ w: L, _ t: Double) -> L {
    let shrunk = t * sparse == 0 ? w : w.shrunk(by: t * sparse)
    return shrunk * (1 / (1 + t * ridge))
  }
  @inline(__always) func prox<L: Lane>(_ w: L, steps t: L) -> L { w.shrunk(by: sparse * t) / (1 + ridge * t) }
  func proxFolds(_ t: Double) -> Folds? {
    let scaled = Fold.times(1 / (1 + t * ridge))
    return t * sparse == 0 ? Folds(scaled) : Folds(.shrink(t * sparse), scaled)
  }
}
