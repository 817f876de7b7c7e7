import ThalwegCore

/// Wasserstein-robust local steps: the batch moves uphill, held back by its distance, and the weights step there.
///
///     ζ = z;  adv_steps times ζ ← ζ + adv_lr·(∂loss/∂ζ − 2·gamma·(ζ − z));   w ← w − lr·∂loss/∂w at ζ
///
/// z (...) is the batch's inputs; labels do not move. max_iter steps on one batch; `fedavg` averages the clients. gamma
/// must be above half the smoothness in ζ for the inner problem to be concave; a large one is FedAvg.
/// Ends     max_iter.
/// Differs  whether the paper's distance has the factor 2 is not certain.
/// Source   Nguyen, Vo, Tran, et al., 2022, arXiv:2206.01432.
struct WAFLLocal: Driver {
  static let method = Method.solver(
    "wafl_local", "Wasserstein-robust local steps: the batch moves uphill, and the weights step there.",
    rule: "zeta = z;  adv_steps times zeta += adv_lr (dloss/dzeta - 2 gamma (zeta - z));  w -= lr dloss/dw at zeta",
    source: "Nguyen et al., 2022, arXiv:2206.01432",
    parameters: [
      .number("gamma", 0.5, .atLeast(0), "price of a squared distance"),
      .integer("adv_steps", 10, .atLeast(0), "steps of the batch"), .number("adv_lr", nil, .above(0), "its step size"),
      .number("lr", nil, .above(0), "step size of the weights"), .integer("max_iter", 1, .atLeast(0), "local steps"),
    ],
    inputs: [
      .constant("x0", "n", "weights to start with"), .constant("z", "...", "inputs of the batch"),
      .result("x", "n", "weights"), .result("zeta", "...", "the batch where the last step was taken"),
      .result("iterations", "", "local steps"),
    ],
    asks: [
      RequestKind(
        "input_gradient", "the gradient of the loss by the batch's inputs",
        given: [.given("weights", "n", "weights"), .given("batch", "...", "inputs")],
        wanted: [.wanted("uphill", "...", "gradient by the inputs")]),
      RequestKind(
        "weight_gradient", "the gradient of the loss by the weights",
        given: [.given("weights", "n", "weights"), .given("batch", "...", "inputs")],
        wanted: [.wanted("gradient", "n", "gradient by the weights")]),
    ],
    kept: [
      .kept("g", "n", "gradient by the weights"), .kept("u", "...", "gradient by the inputs"),
      .kept("tries", "", "steps of the batch done"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step, look, moved, weights }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], z = try io["z"], zeta = try io["zeta"], g = try io["g"], u = try io["u"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      zeta.copy(z)
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      zeta.copy(z)
      io.tries = 0
      return .go(.look)
    case .look:
      if io.tries >= h.adv_steps { return .ask("weight_gradient", [x, zeta], [g], then: .weights) }
      return .ask("input_gradient", [x, zeta], [u], then: .moved)
    case .moved:
      u.add(zeta, times: -2 * h.gamma)
      u.add(z, times: 2 * h.gamma)
      zeta.add(u, times: h.adv_lr)
      io.tries += 1
      return .go(.look)
    case .weights:
      x.add(g, times: -h.lr)
      io.iterations += 1
      return .go(.step)
    }
  }
}
