import Glibc
import ThalwegCore

/// What surrounds sharpness-aware perturbations: splits of a batch, divergences, perturbed inputs, an edge of
/// stability.

/// The largest eigenvalue of a Hessian at which gradient descent with unnormalised SAM is stable.
///
///     lr·λ·(1 + rho·λ) = 2:   λ = (−1 + √(1 + 8·rho/lr))/(2·rho),  2/lr for rho = 0
///
/// lr and rho are numbers; the value is λ.
/// Errors   TW_ERROR_RANGE: lr that is not above 0, or rho below 0.
/// Differs  the stochastic corrections of the paper are not there: this is the quadratic case of `usam`.
/// Source   Agarwala and Dauphin, 2023, arXiv:2302.08692.
struct SAMEdgeOfStability: Objective {
  static let method = Method(
    "sam_eos_eigenvalue", .diagnostic, "The largest eigenvalue at which descent with unnormalised SAM is stable.",
    rule: "value = the lambda with lr*lambda*(1 + rho*lambda) = 2;  2/lr for rho = 0",
    source: "Agarwala, Dauphin, 2023, arXiv:2302.08692",
    inputs: [.constant("lr", "", "step size"), .constant("rho", "", "multiplier of the gradient in usam")])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let lr = Double(try x["lr"].pointee), rho = Double(try x["rho"].pointee)
    guard lr > 0, lr.isFinite else {
      throw Failure(Status.range, "`lr` must be finite and above 0, got \(text(lr))")
    }
    guard rho >= 0, rho.isFinite else {
      throw Failure(Status.range, "`rho` must be finite and at least 0, got \(text(rho))")
    }
    // the root without its cancellation at small rho
    return 4 / (lr + lr.squareRoot() * (lr + 8 * rho).squareRoot())
  }
}

/// How far predictions have moved from those of a reference: the radius of `tram`.
///
///     p = softmax(reference), q = softmax(z);   forward: KL(p ‖ q),  reverse: KL(q ‖ p),  symmetric: their sum
///     batchmean: the mean over the batch;   authors: that over B·C
///
/// reference and z are (B, C), logits of the reference (the model a step before, the pre-trained one, or the same one
/// on noisy inputs) and of the model now. No gradient flows into the value.
/// Differs  the authors' reduction, a mean over all elements that is divided by B again, is reduction=authors. Whether
///          their symmetric form is the sum or the mean of both is UNVERIFIED: the sum here.
/// Source   Sherborne, Saphra, Dasigi and Peng, 2023, arXiv:2310.03646.
struct TRAMDivergence: Objective {
  static let method = Method(
    "tram_divergence", .diagnostic, "How far predictions have moved from those of a reference: the radius of tram.",
    rule: """
      p = softmax(reference), q = softmax(z);  forward: KL(p, q);  reverse: KL(q, p);  symmetric: their sum
      value = sum over the batch / B (batchmean), or / (B*B*C) (authors)
      """,
    source: "Sherborne, Saphra, Dasigi, Peng, 2023, arXiv:2310.03646",
    parameters: [
      .choice("kind", ["forward", "reverse", "symmetric"], "direction of the divergence"),
      .choice("reduction", ["batchmean", "authors"], "what the sum over the batch is divided by"),
    ],
    inputs: [
      .constant("reference", "B, C", "logits of the reference"), .constant("z", "B, C", "logits of the model now"),
    ])
  let forwards: Bool, backwards: Bool, authors: Bool
  init(_ h: Hyper) {
    (forwards, backwards) = (!h.is("kind", "reverse"), !h.is("kind", "forward"))
    authors = h.is("reduction", "authors")
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["reference"], b = try x["z"], rows = x.sizes["B"], classes = x.sizes["C"]
    let sum = Rows.sum(rows, work: 32 * classes) { i in
      let first = a + i * classes, second = b + i * classes
      let levels = (Softmax.logSum(first, classes), Softmax.logSum(second, classes))
      var total = 0.0
      for c in 0..<classes {
        let p = Double(first[c]) - levels.0, q = Double(second[c]) - levels.1
        if forwards, p > -.infinity { total += exp(p) * (p - q) }
        if backwards, q > -.infinity { total += exp(q) * (q - p) }
      }
      return total
    }
    return sum / Double(rows) / (authors ? Double(rows) * Double(classes) : 1)
  }
}

/// The samples of rare classes in a batch: those whose loss `imbsam` makes flat.
///
///     tail_b = 1 where counts of y_b < eta, else 0;   head = 1 − tail
///
/// y is (B,), counts (C,), the training samples of each class. Both partial losses are divided by B, so that they are
/// sums with these weights over B. The value is the number of samples in the tail.
/// Source   Zhou, Qu, Xu and Shen, 2023, arXiv:2308.07815.
struct ImbSAMSplit: Objective {
  static let method = Method(
    "imbsam_split", .diagnostic, "The samples of rare classes in a batch, whose loss imbsam makes flat.",
    rule: "tail_b = 1 where counts[y_b] < eta, else 0;  head = 1 - tail;  value = sum of tail",
    source: "Zhou, Qu, Xu, Shen, 2023, arXiv:2308.07815",
    parameters: [.number("eta", 20, .atLeast(0), "a class with fewer training samples is rare")],
    inputs: [
      .integer("y", "B", "labels, from 0 to C - 1"), .constant("counts", "C", "training samples of each class"),
      .result("tail", "B", "1 for samples of rare classes"), .result("head", "B", "1 for the others"),
    ])
  let eta: Double
  init(_ h: Hyper) { eta = h.eta }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let y = try x.integers("y"), counts = try x["counts"], n = x.sizes["B"], classes = x.sizes["C"]
    try Labels.check(y, n, classes)
    try refuseNonFinite(counts, classes, "counts")
    let tail = (0..<n).map { Double(counts[y[$0]]) < eta ? 1.0 : 0 }
    try cache?.keep("tail", numbers: tail, T.self)
    try cache?.keep("head", numbers: tail.map { 1 - $0 }, T.self)
    return tail.reduce(0, +)
  }
}

/// Inputs a normalised step away, towards a larger loss: the unknown domain of `udim`.
///
///     x̃ = x + step·g/max(‖g‖, 1e-12);   ‖·‖ of each sample (axis=sample), or of each coordinate over the batch
///     (batch)
///
/// x and gradient are (n, ...); the gradient is that of loss + rho·‖∇loss‖ for the inputs. The value is the length of
/// the displacement.
/// Differs  axis=batch is what the authors run; whether they mean it is UNVERIFIED.
/// Source   Shin, Bae, Na, Kim and Moon, 2024, ICLR.
struct UDIMPerturbInputs: Objective {
  static let method = Method(
    "udim_perturb_inputs", .diagnostic, "Inputs a normalised step away, towards a larger loss.",
    rule: "perturbed = x + step*g/max(|g|, 1e-12), |g| of each sample or of each coordinate over the batch",
    source: "Shin, Bae, Na, Kim, Moon, 2024, ICLR",
    parameters: [
      .number("step", 10, .above(0), "length of the step"),
      .choice("axis", ["sample", "batch"], "what the gradient is normalised over"),
    ],
    inputs: [
      .constant("x", "n, ...", "inputs"), .constant("gradient", "n, ...", "gradient for them"),
      .result("perturbed", "n, ...", "perturbed inputs"),
    ])
  let step: Double, batch: Bool
  init(_ h: Hyper) { (step, batch) = (h.step, h.is("axis", "batch")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let from = try x["x"], g = try x["gradient"], n = x.sizes["n"], d = x.sizes.samples
    try refuseNonFinite(g, n * d, "gradient")
    let out = try cache?.keep("perturbed", n * d, T.self)
    let lines = batch ? d : n, length = batch ? n : d, apart = batch ? d : 1
    var total = 0.0
    for line in 0..<lines {
      let first = batch ? line : line * d
      var norm = 0.0
      for k in 0..<length { norm = hypot(norm, Double(g[first + k * apart])) }
      let factor = step / max(norm, 1e-12)
      total = hypot(total, factor * norm)
      guard let out else { continue }
      for k in 0..<length {
        let i = first + k * apart
        out[i] = T(Double(from[i]) + factor * Double(g[i]))
      }
    }
    return total
  }
}
