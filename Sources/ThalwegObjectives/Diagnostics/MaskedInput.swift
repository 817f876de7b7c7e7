import ThalwegCore

/// Masked-input regularization: what a language model trains on besides its clean data, and how both losses count.
///
///     sequence b: rate_b = min + (max − min)·u_b;   position t ≥ first is masked where v_bt < rate_b
///     masked: the tokens with mask_token there     clean_weights = ntp_weight/#rows on every row with a target
///     masked_weights = aux_weight/#rows on every row, or (full_sequence=false) on those that predict a masked position
///
/// tokens and targets are (B, T): row t of targets is what row t predicts, token t + 1 of the clean sequence, or
/// ignore_index. u (B,) and v (B, T) are uniform draws of the host. The loss is Σ clean_weights·CE(logits(tokens)) +
/// Σ masked_weights·CE(logits(masked)), both against the same targets; a single backward pass of each, and gradients
/// add. The counts are 1 at least. The value is the share of tokens that are masked.
/// Errors   TW_ERROR_RANGE: ratio_min above ratio_max; a token or mask token that the compute type cannot hold.
/// Source   Xu et al., 2026, arXiv:2606.06888.
struct MaskedInput: Objective {
  static let method = Method(
    "masked_input", .diagnostic, "Masked copies of token sequences, and the weights of clean and masked losses.",
    rule: """
      rate_b = min + (max - min) u_b;  token t >= first becomes mask_token where v_bt < rate_b
      loss = ntp_weight*mean CE(logits(tokens)) + aux_weight*mean CE(logits(masked)), as weights of rows
      """,
    source: "Xu et al., 2026, arXiv:2606.06888",
    parameters: [
      .integer("mask_token", nil, .atLeast(0), "token that stands for masked ones, outside the vocabulary"),
      .number("ratio_min", 0, .within(0, 1), "least rate of a sequence"),
      .number("ratio_max", 0.5, .within(0, 1), "largest rate of a sequence"),
      .integer("first", 1, .atLeast(0), "first position that may be masked"),
      .number("aux_weight", 0.4, .atLeast(0), "weight of the masked loss"),
      .number("ntp_weight", 1, .atLeast(0), "weight of the clean loss"),
      .flag("full_sequence", true, "the masked loss counts all rows, not only those that predict a masked position"),
      .integer("ignore_index", -100, .any, "target that is skipped"),
    ],
    inputs: [
      .integer("tokens", "B, T", "token sequences"), .integer("targets", "B, T", "what each row predicts"),
      .constant("u", "B", "uniform draws of the sequences"), .constant("v", "B, T", "uniform draws of the positions"),
      .result("masked", "B, T", "the tokens, masked"), .result("mask", "B, T", "1 where they are"),
      .result("clean_weights", "B, T", "of the rows of the clean loss"),
      .result("masked_weights", "B, T", "of the rows of the masked loss"),
    ],
    validate: { (h) throws(Failure) in
      guard h.ratio_min <= h.ratio_max else {
        throw Failure(
          Status.range,
          "masked_input: `ratio_min` must not be above `ratio_max`, got \(text(h.ratio_min)) and \(text(h.ratio_max))")
      }
    })
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let tokens = try x.integers("tokens"), targets = try x.integers("targets"), u = try x["u"], v = try x["v"]
    let rows = x.sizes["B"], length = x.sizes["T"], count = try area(rows, length), space = Workspace()
    defer { space.close() }
    let token = h.integer("mask_token"), ignored = h.integer("ignore_index"), first = h.integer("first")
    let low: Double = h.ratio_min, high: Double = h.ratio_max, full: Bool = h.full_sequence
    try refuseNonFinite(u, rows, "u")
    try refuseNonFinite(v, count, "v")
    let most = T.isDouble ? 1 << 53 : 1 << 24
    for i in 0..<count where tokens[i].magnitude > UInt(most) {
      throw Failure(Status.range, "`tokens` holds \(tokens[i]), which is no whole number of this dtype")
    }
    guard token <= most else { throw Failure(Status.range, "`mask_token` is no whole number of this dtype: \(token)") }
    let masked = try space.room(cache, "masked", count, T.self), mask = try space.room(cache, "mask", count, T.self)
    let clean = try space.room(cache, "clean_weights", count, T.self)
    let other = try space.room(cache, "masked_weights", count, T.self)
    var hidden = 0, kept = 0, keptMasked = 0
    for b in 0..<rows {
      let rate = low + (high - low) * Double(u[b])
      for t in 0..<length {
        let at = b * length + t, hides = t >= first && Double(v[at]) < rate
        masked[at] = T(hides ? token : tokens[at])
        mask[at] = hides ? 1 : 0
        hidden += hides ? 1 : 0
      }
      for t in 0..<length {
        let at = b * length + t, counts = targets[at] != ignored
        let countsMasked = counts && (full || (t + 1 < length && mask[at + 1] == 1))
        (clean[at], other[at]) = (counts ? 1 : 0, countsMasked ? 1 : 0)
        kept += counts ? 1 : 0
        keptMasked += countsMasked ? 1 : 0
      }
    }
    let weight = h.ntp_weight / Double(max(1, kept)), weightMasked = h.aux_weight / Double(max(1, keptMasked))
    for i in 0..<count { (clean[i], other[i]) = (T(weight) * clean[i], T(weightMasked) * other[i]) }
    return Double(hidden) / Double(count)
  }
}
