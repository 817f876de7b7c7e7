import ThalwegCore

/// What solvers ask of the value at a trial.
enum Trial {
  /// Whether a value is at most another plus a change (a fall is negative), up to their rounding. A value that is not
  /// finite is no trial that succeeded.
  static func lowers<T: Real>(
    _ before: Double, _ after: Double, _: T.Type, by change: Double, ulps: Double = 32
  ) -> Bool {
    let slack = ulps * (T.isDouble ? 0x1p-52 : 0x1p-23) * max(abs(before), abs(after))
    return after.isFinite && after <= before + change + slack
  }
}
