import Glibc
import ThalwegCore

/// The losses of value learning whose gradients `odice` combines: the convex conjugate of a divergence at residuals.
///
///     value = lambda·mean f*(y);   pearson: w = [y/2 + 1]₊, f* = y·w − (w − 1)², derivative w;   kl: f* = exp(y − 1)
///     policy_weight = min([y]₊, 100) (pearson),  min(exp(y − 1), 100) (kl)
///
/// y (n,) are residuals: the forward loss has r + γ·(1 − done)·V̄(s′) − V(s), the backward one r + γ·(1 − done)·V(s′) −
/// V̄(s), where V̄ is an average of V without a gradient. Beside both stands (1 − lambda)·mean V(s). The weights of the
/// policy are those of the forward residuals.
/// Differs  nothing from the authors' code; the weight eta of the backward part is that of `odice`.
/// Source   Mao, Xu, Zhan, Zhang and Zhang, 2024, arXiv:2402.00348.
struct ODICELoss: Objective {
  static let method = Method(
    "odice_loss", .objective, "The convex conjugate of a divergence at residuals of a value function.",
    rule: """
      value = lambda*mean f*(y);  pearson: w = max(y/2 + 1, 0), f* = y*w - (w - 1)^2;  kl: f* = exp(y - 1)
      policy_weight = min(max(y, 0), 100) (pearson), min(exp(y - 1), 100) (kl)
      """,
    source: "Mao, Xu, Zhan, Zhang, Zhang, 2024, arXiv:2402.00348",
    parameters: [
      .number("lambda", 0.6, .between(0, 1, lowOpen: true, highOpen: true), "conservatism; 0.4 for imitation"),
      .choice("f", ["pearson", "kl"], "the divergence"),
    ],
    inputs: [
      .variable("y", "n", "residuals"), .result("policy_weight", "n", "weights of the samples in policy extraction"),
    ])
  let lambda: Double, kl: Bool
  init(_ h: Hyper) { (lambda, kl) = (h.lambda, h.is("f", "kl")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let y = try x["y"], n = x.sizes["n"], share = lambda / Double(n)
    let g = try cache?.keep("y", n, T.self), weights = try cache?.keep("policy_weight", n, T.self)
    return Rows.sum(n, work: 16) { i in
      let residual = Double(y[i]), w = kl ? exp(residual - 1) : larger(residual / 2 + 1, 0)
      g?[i] = T(share * w)
      weights?[i] = T(smaller(kl ? w : larger(residual, 0), 100))
      return share * (kl ? w : residual * w - (w - 1) * (w - 1))
    }
  }
}
