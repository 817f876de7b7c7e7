import Glibc
import ThalwegCore

/// Efficient SAM: a random share of the parameters is perturbed, and the second gradient may be one of few samples.
///
///     k ~ Bernoulli(β), entry by entry;   e = k/β·ρ·g/(‖g‖ + ε), ‖·‖ of the whole gradient
///     the rule sees the gradient at θ + e
///
/// The second half of the method is the host's, who alone sees samples: at the second request it may compute the losses
/// again and take the gradient of the share γ of the samples whose losses rose most.
///
/// State    the parameters while they are away, and the draws.
/// Differs  entries are drawn as in the paper; the authors' code draws whole tensors. An entry is perturbed where its
///          standard normal number is below the β-quantile. beta=1 is sam.
/// Source   Du, Yan, Feng, Zhou, Zhen, Goh and Tan, 2021, arXiv:2110.03141.
struct ESAM: Source {
  static let method = Method(
    "esam", .perturbation, "SAM that perturbs a random share of the parameters.",
    rule: """
      k ~ Bernoulli(beta), entry by entry;  e = k/beta * rho/(|g| + eps) * g
      g <- gradient at theta + e; the host may take it of the samples whose losses rose most
      """,
    source: "Du, Yan, Feng, Zhou, Zhen, Goh, Tan, 2021, arXiv:2110.03141",
    parameters: [
      .number("rho", 0.05, .atLeast(0), "radius"),
      .number("beta", 0.6, .between(0, 1, lowOpen: true, highOpen: false), "share of the parameters that is perturbed"),
      .eps(1e-12, "added to the norm"),
    ],
    slots: [homeSlot, Slot.temporary("drawn", "a normal number for each entry")], requests: "gradient")

  let slots = ESAM.method.slots
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }
  private struct AscendSome: ElementOperation {
    let scale, below: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = x
      x = x + L.select(L.less(s[1], L(below)), scale * g, L(0))
    }
  }
  /// Where the standard normal distribution function is β.
  private func quantile(_ beta: Double) -> Double {
    if beta >= 1 { return .infinity }
    var low = -40.0, high = 40.0
    while true {
      let x = (low + high) / 2
      if x <= low || x >= high { return x }
      if 0.5 * erfc(-x * 0.5.squareRoot()) < beta { low = x } else { high = x }
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase > 0 {
      io.comeHome()
      return .update(nil)
    }
    io.draw(1, signs: false)
    let norm = io.sum(SquaredNorm()).root(0)
    io.change(parameters: true) { h in
      let beta: Double = h.beta
      return AscendSome(scale: perLength(h.rho, norm, h.eps) / beta, below: quantile(beta))
    }
    return .ask(Ask(.gradient))
  }
}
