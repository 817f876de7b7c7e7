import ThalwegCore

/// One stage of a pipeline, with its hyper-parameters for every group.
package final class Stage {
  package enum Role: Sendable { case source, gradient, rule, update, applier, after }
  package let id: Int
  package let method: Method
  package let component: Component
  package let role: Role
  /// The names under which a sentence called it: its own, and those of the sentence names that it came from.
  package let aliases: [String]
  /// Hyper-parameters by group; group 0 is the default.
  package var hyper: [Hyper]
  /// Those of its creation, schedules not yet evaluated: they decide which state it has.
  package internal(set) var founding: Hyper
  /// No tensor has stepped with its state yet: `founding` may still ask for more. `grown`: it has, since the state was
  /// planned.
  var isNew = true, grown = false
  /// Schedules by group and parameter.
  package var schedules: [[Int: any Schedule]]
  /// Those of the method that it holds, by the parameter of that.
  private let heldSchedules: [Int: any Schedule]
  /// A factorisation in it may fail, with the hyper-parameters of some group.
  var mayFail: Bool { hyper.contains { whole?.mayFail($0) ?? false } }
  func hasSchedules(_ group: Int) -> Bool { !schedules[group].isEmpty || !heldSchedules.isEmpty }
  private var peaks: [Int: Double] = [:]
  /// What a group that is added starts from: the sentence's own values, and what was set for all groups since.
  var standard: Hyper
  var standardSchedules: [Int: any Schedule]
  package let element: ElementKernels?
  package let whole: WholeKernels?
  package let source: (any Source)?
  /// The flag that says which groups its source touches, by its place.
  let flag: Int?
  package let scalars: [Scalar]
  package let scope: Scope
  package let phases: Int
  /// Over what the sums of each phase reach.
  let reach: [Scope]
  /// The scalars of global scope (tensors have their own otherwise).
  package let globals: UnsafeMutablePointer<Double>
  /// It stores the parameters that the update moves, and shows the host something else.
  package let isView: Bool
  /// The pipeline of `route` that a source stands in.
  var branch: Int?

  init(
    id: Int, method: Method, component: Component, role: Role, aliases: [String], hyper: Hyper,
    element: ElementKernels?,
    whole: WholeKernels?, source: (any Source)?, isView: Bool = false
  ) throws(Failure) {
    (self.id, self.method, self.component, self.role, self.aliases) = (id, method, component, role, aliases)
    (self.hyper, founding, self.element, self.whole, self.source, self.isView) = (
      [hyper], hyper, element, whole, source, isView
    )
    flag = source?.flag.flatMap { name in hyper.parameters.firstIndex { $0.name == name } }
    let own = element?.scalars(hyper) ?? whole?.scalars(hyper) ?? []
    scalars = own.isEmpty ? source?.scalars ?? [] : own  // a rule that has none may leave them to its source
    scope = element?.scope(hyper) ?? (whole == nil || source != nil ? .global : .tensor)
    let phases = element?.phases(hyper) ?? 0
    self.phases = phases
    reach = (0..<phases).map { element?.reach(hyper, $0) ?? .global }
    standard = hyper
    standardSchedules = try Stage.schedules(hyper)
    heldSchedules = try hyper.held[0].map { (held) throws(Failure) in try Stage.schedules(held.hyper) } ?? [:]
    schedules = [standardSchedules]
    // Last: an initialiser that throws after this would leak it.
    globals = .allocate(capacity: max(1, scalars.count))
    globals.initialize(repeating: 0, count: max(1, scalars.count))
    for (i, s) in scalars.enumerated() { globals[i] = s.start }
  }
  deinit { globals.deallocate() }

  package var name: String { method.name }
  var perTensor: Bool { (element?.perTensor ?? false) || (scope == .tensor && (phases > 0 || !scalars.isEmpty)) }

  /// It looks at all its tensors before it changes one.
  var gathers: Bool { role == .after && (whole?.gathers(founding) ?? false) }

  private static func schedules(_ h: Hyper) throws(Failure) -> [Int: any Schedule] {
    var d: [Int: any Schedule] = [:]
    for (i, v) in h.values.enumerated() {
      if case .schedule(let node) = v { d[i] = try Registry.schedule(node) }
    }
    return d
  }

  func reach(_ parameter: Int) -> Parameter.Reach { founding.reach(parameter) }

  func addGroup() {
    hyper.append(standard)
    schedules.append(standardSchedules)
  }

  /// Evaluates the scheduled hyper-parameters of a group at step k; a value out of its range is an error.
  func evaluate(_ group: Int, _ k: Double) throws(Failure) {
    for (i, s) in schedules[group] {
      let x = s.value(k)
      try hyper[group].parameters[i].check(x, of: name)
      hyper[group].numbers[i] = x
    }
    guard !heldSchedules.isEmpty, let held = hyper[group].held[0] else { return }
    var inner = held.hyper
    for (i, s) in heldSchedules {
      inner.numbers[i] = s.value(k)
      try inner.parameters[i].check(inner.numbers[i], of: held.method.name)
    }
    hyper[group].ofHeld = [inner]
  }

  /// The largest step size of a group's schedule as it was written, whatever it has seen since; NaN where it has none.
  func peak(_ group: Int) -> Double {
    if let known = peaks[group] { return known }
    var best = Double.nan
    if let k = hyper[group].parameters.firstIndex(where: { $0.name == "lr" }),
      case .schedule(let node) = hyper[group].values[k],
      let s = try? Registry.schedule(node.withoutMemory)
    {
      best = s.peak(before: .infinity)
    }
    peaks[group] = best
    return best
  }

  /// Checks that a group with these hyper-parameters may take a value; nothing changes.
  func check(_ old: Hyper, _ parameter: Int, _ value: Value) throws(Failure) {
    let p = old.parameters[parameter]
    guard p.live else { throw Failure(Status.sequence, "\(name): `\(p.name)` is fixed when the optimizer is created") }
    if case .schedule(let node) = value { _ = try Registry.schedule(node) }
    var changed = old
    changed.put(value, parameter)
    try check(changed, "`\(p.name)` = \(p.write(value))")
  }
  /// Checks that hyper-parameters go together, and with the state that there is.
  func check(_ changed: Hyper, _ what: String) throws(Failure) {
    try method.validate(changed)
    guard fits(changed) || (isNew && mayGrow(changed)) else {
      throw Failure(
        Status.sequence,
        "\(name): \(what) needs state that the optimizer was created without: write it in the sentence, "
          + "or set it before the first step")
    }
  }
  /// Gives a group a value that was checked; nil: gives it to what later groups start from.
  func put(_ group: Int?, _ parameter: Int, _ value: Value) {
    var made: (any Schedule)?
    if case .schedule(let node) = value { made = try? Registry.schedule(node) }
    peaks = [:]
    if let group {
      hyper[group].put(value, parameter)
      schedules[group][parameter] = made
    } else {
      standard.put(value, parameter)
      standardSchedules[parameter] = made
    }
    if isNew { grow(group.map { hyper[$0] } ?? standard) }
  }

  package var sentence: String {
    let h = hyper[0]
    guard !h.parameters.isEmpty else { return name }
    return name + "(" + zip(h.parameters, h.values).map { "\($0.name)=\($0.write($1))" }.joined(separator: ", ") + ")"
  }
}
