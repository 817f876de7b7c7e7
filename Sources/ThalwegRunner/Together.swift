import ThalwegCore

/// Changes that belong together: all of them are made, or none when one is refused.
extension Optimizer {
  package typealias Setting = (path: String, value: String)

  /// Changes several hyper-parameters of one group, or of all (nil). They are taken in whatever order they fit.
  ///
  /// Throws what `setText` throws for the first that is refused.
  package func setTexts(_ group: Int?, _ settings: [Setting]) throws(Failure) {
    let before = self.settings(of: group)
    do throws(Failure) { try setEach(group, settings) } catch {
      restore(before)
      throw error
    }
  }

  /// Binds parameters to a group and gives the group hyper-parameters of its own.
  ///
  /// Throws what `addParameters` and `setTexts` throw; the group is then as before, or not there.
  package func addParameters(_ views: [View], _ names: [String]?, _ group: String?, _ settings: [Setting])
    throws(Failure)
  {
    guard !views.isEmpty else { throw Failure(Status.count, "count is 0; bind at least one parameter") }
    guard names == nil || names?.count == views.count else {
      throw Failure(Status.count, "\(views.count) parameters have \(names?.count ?? 0) names")
    }
    guard !settings.isEmpty else { return try addParameters(views, names, group) }
    let before = self.settings(of: groups.place(of: group ?? "") ?? groups.count)
    do throws(Failure) {
      try setEach(makeGroup(group), settings)
      try addParameters(views, names, group)
    } catch {
      restore(before)
      throw error
    }
  }

  /// The group of a name, which is made where there is none.
  func makeGroup(_ name: String?) -> Int {
    let name = name ?? ""
    if let known = groups.place(of: name) { return known }
    for s in stages { s.addGroup() }
    groups.append(name)
    return groups.count - 1
  }

  /// A value that is refused may be right once the others are there.
  private func setEach(_ group: Int?, _ settings: [Setting]) throws(Failure) {
    var open = settings
    while !open.isEmpty {
      var refused: [Setting] = [], reason: Failure?
      for s in open {
        do throws(Failure) { try setText(group, s.path, s.value) } catch {
          refused.append(s)
          reason = reason ?? error
        }
      }
      if let reason, refused.count == open.count { throw reason }
      open = refused
    }
  }

  private typealias Settings = (groups: Int, scale: Double, stages: [Stage.Settings])
  /// What a change may touch of one group, which need not be there yet, or of all (nil).
  private func settings(of group: Int?) -> Settings {
    // (a value that is one for all groups is set for all)
    let all = 0..<groups.count, some = shared.isEmpty ? group.map { ($0..<$0 + 1).clamped(to: all) } ?? all : all
    return (groups.count, options.gradientScale, stages.map { $0.settings(some) })
  }
  private func restore(_ before: Settings) {
    groups.keep(before.groups)
    options.gradientScale = before.scale
    for (s, old) in zip(stages, before.stages) { s.restore(old, groups: before.groups) }
    if stages.contains(where: { $0.flag != nil }) { listed = (-1, []) }
  }
}

extension Stage {
  /// What is changed where hyper-parameters are set: of some groups, and of those to come.
  typealias Settings = (
    some: Swift.Range<Int>, hyper: [Hyper], schedules: [[Int: any Schedule]], standard: Hyper,
    later: [Int: any Schedule], founding: Hyper
  )
  func settings(_ some: Swift.Range<Int>) -> Settings {
    (some, Array(hyper[some]), Array(schedules[some]), standard, standardSchedules, founding)
  }
  func restore(_ old: Settings, groups: Int) {
    hyper.removeLast(hyper.count - groups)
    schedules.removeLast(schedules.count - groups)
    hyper.replaceSubrange(old.some, with: old.hyper)
    schedules.replaceSubrange(old.some, with: old.schedules)
    (standard, standardSchedules) = (old.standard, old.later)
    found(old.founding)
  }
}

/// State that hyper-parameters ask for after the sentence was read: to be had until the first step, which uses it.
extension Optimizer {
  /// No tensor has taken a step.
  var isNew: Bool { phase < 0 && step == 0 && !bound.indices.contains { records[$0].started || records[$0].t > 0 } }

  /// What decides which state there is.
  var growth: [Hyper] {
    get { stages.map(\.founding) }
    set {
      for (s, h) in zip(stages, newValue) { s.found(h) }
      listed = (-1, [])
    }
  }
}

extension Stage {
  private func slotNames(_ h: Hyper) -> [String] { element?.slots(h, Shape(dimensions: [2, 2])).map(\.name) ?? [] }

  /// The state that there is serves these hyper-parameters.
  func fits(_ h: Hyper) -> Bool { slotNames(founding).starts(with: slotNames(h)) }

  /// They need further slots, and differ in nothing else that was fixed when the stage was made.
  func mayGrow(_ h: Hyper) -> Bool {
    guard let e = element else { return false }
    return slotNames(h).starts(with: slotNames(founding)) && e.scalars(h).count == scalars.count && e.scope(h) == scope
      && e.phases(h) == phases
  }

  func grow(_ h: Hyper) { if !fits(h), mayGrow(h) { found(h) } }

  func found(_ h: Hyper) {
    if slotNames(h) != slotNames(founding) { grown = true }
    founding = h
  }
}
