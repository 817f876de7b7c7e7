import ThalwegCore

/// The partner of a new learning rate or weight decay on the line lr·weight_decay = const, along which late training
/// does not change.
///
///     γ = lr·weight_decay, of the run that is known;   x = inner(k), the other number of the new run
///     late: value = γ/x;   early: the value of the known run, since early curves follow lr alone
///     returns=horizon: 1/γ, the steps over which decoupled decay averages
///
/// State    that of the inner schedule.
/// Differs  where there is no line (γ = 0, x = 0) the value of the known run stays. The laws of the batch size are not
///          in it.
/// Source   Li et al., 2025, arXiv:2509.25049.
struct EffectiveLR: WrappingSchedule {
  static let method = Method(
    "effective_lr", .schedule,
    "The weight decay for a new learning rate, or the reverse, on the line lr*weight_decay = const.",
    rule: """
      gamma = lr*weight_decay of the known run;  x = inner(k): the new lr (returns=weight_decay) or weight decay \
      (returns=lr)
      late: gamma/x;  early, or gamma = 0, or x = 0: the value of the known run;  returns=horizon: 1/gamma
      """,
    source: "Li et al., 2025, arXiv:2509.25049",
    parameters: [
      .lr(nil, .above(0)), .number("weight_decay", nil, .atLeast(0), "decoupled weight decay of the known run"),
      .object("inner", .schedule, "the other number of the new run"),
      .choice("phase", ["late", "early"], "late: lr*weight_decay stays; early: the value stays"),
      .choice("returns", ["weight_decay", "lr", "horizon"], "what the value is"),
    ])
  let gamma, known: Double
  let late, horizon: Bool
  var inner: any Schedule

  init(_ h: Hyper) throws(Failure) {
    let lr: Double = h.lr, decay: Double = h.weight_decay
    gamma = lr * decay
    known = h.is("returns", "lr") ? lr : decay
    (late, horizon) = (h.is("phase", "late"), h.is("returns", "horizon"))
    guard let first = try h.schedules("inner").first else {
      throw Failure(Status.internal, "effective_lr: no inner schedule")
    }
    inner = first
  }

  func value(_ k: Double) -> Double {
    if horizon { return 1 / gamma }
    let partner = gamma / inner.value(k)
    return late && gamma > 0 && partner.isFinite ? partner : known
  }
}
