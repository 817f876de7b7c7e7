import Glibc

/// A line search for the strong Wolfe conditions as L-BFGS uses it, one trial at a time: extrapolation by cubics, then
/// cubics inside the bracket, kept away from its ends.
///
///     f(t) ≤ f(0) + c1·t·f'(0)     |f'(t)| ≤ c2·|f'(0)|
///
/// A value that is NaN counts as infinite. The gradients of the kept ends lie in places 1 and 2, that of the start is
/// place 0. All that it knows are numbers, so that it can be saved between two trials.
///
/// Source   Nocedal and Wright, 2006, chapter 3; the cubics and the guards: Schmidt, minFunc, 2005.
struct WolfeSearch {
  /// Most trials after the first.
  static let most = 25
  static let names = [
    "t", "tried", "zooms", "insufficient", "low", "t_a", "f_a", "slope_a", "place_a", "t_b", "f_b", "slope_b",
    "place_b", "f_start", "slope_start", "reach",
  ].map { "search_\($0)" }
  private(set) var values: [Double]

  init(values: [Double]) { self.values = values }
  /// `reach`: the largest entry of the direction.
  init(t: Double, f: Double, slope: Double, reach: Double) {
    values = [Double](repeating: 0, count: WolfeSearch.names.count)
    (self.t, fStart, slopeStart, self.reach) = (t, f, slope, reach)
    (a.f, a.slope) = (f, slope)
  }

  struct End { var t: Double, f: Double, slope: Double, place: Double }
  /// The step to try, or the step that was found.
  private(set) var t: Double {
    get { values[0] }
    set { values[0] = newValue }
  }
  private var tried: Double {
    get { values[1] }
    set { values[1] = newValue }
  }
  private var zooms: Bool {
    get { values[2] != 0 }
    set { values[2] = newValue ? 1 : 0 }
  }
  private var insufficient: Bool {
    get { values[3] != 0 }
    set { values[3] = newValue ? 1 : 0 }
  }
  /// The better end is b.
  private var lowIsB: Bool {
    get { values[4] != 0 }
    set { values[4] = newValue ? 1 : 0 }
  }
  private var a: End {
    get { end(5) }
    set { put(newValue, 5) }
  }
  private var b: End {
    get { end(9) }
    set { put(newValue, 9) }
  }
  private var fStart: Double {
    get { values[13] }
    set { values[13] = newValue }
  }
  private var slopeStart: Double {
    get { values[14] }
    set { values[14] = newValue }
  }
  private var reach: Double {
    get { values[15] }
    set { values[15] = newValue }
  }
  private func end(_ k: Int) -> End { End(t: values[k], f: values[k + 1], slope: values[k + 2], place: values[k + 3]) }
  private mutating func put(_ e: End, _ k: Int) {
    (values[k], values[k + 1], values[k + 2], values[k + 3]) = (e.t, e.f, e.slope, e.place)
  }
  private var low: End {
    get { lowIsB ? b : a }
    set { if lowIsB { b = newValue } else { a = newValue } }
  }
  private var high: End {
    get { lowIsB ? a : b }
    set { if lowIsB { a = newValue } else { b = newValue } }
  }

  /// What comes next: another trial (the gradient of the last one is kept in `keep`, 0: it is not), or the end, with
  /// the value at t and the place of its gradient (nil: it is that of the last trial).
  enum Next {
    case trial(keep: Int), found(f: Double, place: Int?)
  }
  private func free(besides e: End) -> Double { e.place == 1 ? 2 : 1 }

  /// The value and the slope at t.
  mutating func take(_ value: Double, _ slope: Double, c1: Double, c2: Double, tolerance: Double) -> Next {
    let f = value.isNaN || slope.isNaN ? Double.infinity : value
    let limit = fStart + c1 * t * slopeStart
    if !zooms {
      // not found within the trials: whatever is better, the start or the last one
      if tried >= Double(WolfeSearch.most) { return f < fStart ? .found(f: f, place: nil) : start() }
      let before = a, now = End(t: t, f: f, slope: slope, place: free(besides: a))
      if f > limit || (tried > 1 && f >= before.f) { return bracket(now, tolerance) }
      if abs(slope) <= -c2 * slopeStart { return .found(f: f, place: nil) }
      if slope >= 0 { return bracket(now, tolerance) }
      a = now
      t = WolfeSearch.cubic(
        before, now, low: now.t + 0.01 * (now.t - before.t), high: now.t * 10)
      tried += 1
      return .trial(keep: Int(now.place))
    }
    var now = End(t: t, f: f, slope: slope, place: 0)
    if f > limit || f >= low.f {
      now.place = free(besides: low)
      high = now
      lowIsB = b.f < a.f
    } else {
      let done = abs(slope) <= -c2 * slopeStart
      if !done, slope * (high.t - low.t) >= 0 { high = low }
      now.place = free(besides: high)
      low = now
      if done { return .found(f: f, place: nil) }
    }
    return next(keep: Int(now.place), tolerance)
  }

  private mutating func start() -> Next {
    t = 0
    return .found(f: fStart, place: 0)
  }
  private mutating func bracket(_ now: End, _ tolerance: Double) -> Next {
    b = now
    (zooms, lowIsB) = (true, b.f < a.f)
    return next(keep: Int(now.place), tolerance)
  }

  /// The next trial inside the bracket, or its better end.
  private mutating func next(keep: Int, _ tolerance: Double) -> Next {
    let least = min(a.t, b.t), most = max(a.t, b.t)
    if tried >= Double(WolfeSearch.most) || (most - least) * reach < tolerance {
      let e = low
      let last = e.t == t && Int(e.place) == keep
      t = e.t
      return .found(f: e.f, place: last ? nil : Int(e.place))
    }
    t = WolfeSearch.cubic(a, b, low: least, high: most)
    let margin = 0.1 * (most - least)
    if min(most - t, t - least) < margin {
      if insufficient || t >= most || t <= least {
        t = abs(t - most) < abs(t - least) ? most - margin : least + margin
        insufficient = false
      } else {
        insufficient = true
      }
    } else {
      insufficient = false
    }
    tried += 1
    return .trial(keep: keep)
  }

  /// The minimiser of the cubic with these values and slopes, inside bounds; their middle where there is none.
  private static func cubic(_ p: End, _ q: End, low: Double, high: Double) -> Double {
    let d1 = p.slope + q.slope - 3 * (p.f - q.f) / (p.t - q.t), square = d1 * d1 - p.slope * q.slope
    guard square >= 0, square.isFinite else { return (low + high) / 2 }
    let d2 = square.squareRoot()
    let t =
      p.t <= q.t
      ? q.t - (q.t - p.t) * ((q.slope + d2 - d1) / (q.slope - p.slope + 2 * d2))
      : p.t - (p.t - q.t) * ((p.slope + d2 - d1) / (p.slope - q.slope + 2 * d2))
    return t.isNaN ? (low + high) / 2 : min(max(t, low), high)
  }
}
