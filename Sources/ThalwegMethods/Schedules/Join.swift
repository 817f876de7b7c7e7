import ThalwegCore

/// Schedules one after another, each counting its own steps from 0.
///
///     schedules[i] from boundaries[i − 1] on, at step k − boundaries[i − 1]
///
/// State    that of the parts.
/// Differs  nothing from optax.join_schedules.
/// Source   folklore.
struct Join: Schedule {
  static let method = Method(
    "join", .schedule, "Schedules one after another, each counting its own steps from 0.",
    rule: "schedules[i] from boundaries[i - 1] on, at step k - boundaries[i - 1]", source: "folklore",
    parameters: [
      .object("schedules", .schedules, "the parts"),
      .list("boundaries", nil, "the first steps of all parts but the first, increasing"),
    ],
    validate: { (h) throws(Failure) in
      let starts = h.list("boundaries")
      guard let i = h.index("schedules"), case .schedules(let parts) = h.values[i], parts.count == starts.count + 1
      else {
        throw Failure(Status.range, "join: `boundaries` needs one entry fewer than `schedules`")
      }
      guard zip(starts, starts.dropFirst()).allSatisfy({ $0 <= $1 }), starts.allSatisfy({ $0 >= 0 && $0.isFinite })
      else {
        throw Failure(
          Status.range,
          "join: `boundaries` must be increasing and not negative, got [\(starts.map(text).joined(separator: ", "))]")
      }
    })
  private var parts: [any Schedule]
  private let starts: [Double]

  init(_ h: Hyper) throws(Failure) {
    parts = try h.schedules("schedules")
    starts = [0] + h.list("boundaries")
  }

  /// The part that is on at step k.
  private func part(_ k: Double) -> Int { max(0, (starts.lastIndex { $0 <= k } ?? 0)) }

  func value(_ k: Double) -> Double {
    let i = part(k)
    return parts[i].value(k - starts[i])
  }

  /// Of all parts, each as far as it goes: a short one that comes late is not passed over.
  func peak(before end: Double) -> Double {
    let ends = Array(starts.dropFirst()) + [end]
    return parts.indices.reduce(.nan) { best, i in
      let own = parts[i].peak(before: min(ends[i], end) - starts[i])
      return own <= best || own.isNaN ? best : own
    }
  }

  var memory: [Double] {
    get { parts.flatMap(\.memory) }
    set {
      var rest = newValue[...]
      for i in parts.indices {
        let n = parts[i].takes(rest) ?? 0
        parts[i].memory = Array(rest.prefix(n))
        rest = rest.dropFirst(n)
      }
    }
  }
  func takes(_ numbers: ArraySlice<Double>) -> Int? {
    var rest = numbers
    for p in parts {
      guard let n = p.takes(rest) else { return nil }
      rest = rest.dropFirst(n)
    }
    return numbers.count - rest.count
  }
  mutating func observe(_ what: String, _ value: Double) throws(Failure) -> Bool {
    var taken = false
    for i in parts.indices where try parts[i].observe(what, value) { taken = true }
    return taken
  }
  mutating func observe(samples: UnsafePointer<Double>, _ m: Int, _ n: Int) throws(Failure) -> Bool {
    var taken = false
    for i in parts.indices where try parts[i].observe(samples: samples, m, n) { taken = true }
    return taken
  }
  mutating func command(_ name: String, at k: Double) -> Bool {
    let i = part(k)
    return parts[i].command(name, at: k - starts[i])
  }
}
