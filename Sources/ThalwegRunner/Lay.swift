import ThalwegCore

extension Branch.Pass {
  /// Lays the pass out; `source` transforms the host's gradient first.
  func lay(out p: Program, _ b: Branch, _ r: UnsafeMutablePointer<Record>, _ source: GradientOperation?) {
    let x = p.parameters()
    if opens, r.pointee.master != nil, !r.pointee.viewed { p.adopt(x) }
    switch work {
    case .measure(let s, let phase):
      guard let e = s.element else { return }
      var a = s.role == .rule ? r.pointee.apply : Apply()
      a.scale = r.pointee.apply.scale
      let update = scratchUpdate ? p.scratch() : nil
      // the operand is the gradient, its companion the parameter; or the update, and the gradient
      let g = gradient(p, r, x, source, whole: update != nil, &a)
      p.measure(e.measure, s.id, phase, a, update ?? g, update == nil ? x : g)

    case .save(let s): p.copy(x, to: p.state(s.id, 0))

    case .materialise:
      guard let whole = makesGradient ? p.second() : p.scratch() else { return }
      var a = r.pointee.apply
      p.copy(gradient(p, r, x, source, whole: true, &a), to: whole)
      if addsDecay, a.coupled != 0 {
        let op = AddCoupled(weight: a.coupled)
        let kernel =
          r.pointee.isDouble
          ? plainKernel(op, SIMD8<Double>.self, writesG: false) : plainKernel(op, SIMD16<Float>.self, writesG: false)
        p.add(whole, x) { _, _, o in kernel(o) }
      }

    case .direct:
      guard let whole = p.scratch(), let e = b.rule.element else { return }
      var a = r.pointee.apply
      // Behind the rule the gradient is only compared with: a copy only where it must be scaled.
      let g = gradient(p, r, x, source, whole: compares, &a)
      p.copy(g, to: whole)
      p.map(e, b.rule.id, a, whole, x)
      run(updates, p, r, whole, g)
      measureAlso(p, whole, g)

    case .update:
      guard let whole = p.scratch() else { return }
      var a = r.pointee.apply
      let g = gradient(p, r, x, source, whole: true, &a)
      run(updates, p, r, whole, g)
      measureAlso(p, whole, g)

    case .difference:
      guard let whole = p.scratch() else { return }
      let op = MoveDirection(lr: r.pointee.apply.lr, isPoint: b.leavesPoint)
      let kernel =
        r.pointee.isDouble
        ? plainKernel(op, SIMD8<Double>.self, writesG: false) : plainKernel(op, SIMD16<Float>.self, writesG: false)
      p.add(whole, x) { _, _, o in kernel(o) }

    case .final:
      var a = r.pointee.apply, rest = after[...]
      if !scratchUpdate, updates.isEmpty, b.applier == nil, let e = b.rule.element {
        let folds = p.mayFold(b.rule.id)
        let g = gradient(p, r, x, source, whole: false, folds: folds, &a)
        while folds, let s = rest.first, let e = s.element, p.fold(e, s.id) { rest = rest.dropFirst() }
        p.fuse(e, b.rule.id, a, x, g)
      } else {
        var u: Program.Place
        if scratchUpdate, let whole = p.scratch() {
          u = whole
          if updates.contains(where: { acts($0, r) }) {
            let g = gradient(p, r, x, source, whole: true, &a)
            u = p.update  // nobody reads the scratch tensor any more: it need not be written
            p.copy(whole, to: u)
            run(updates, p, r, u, g)
          }
        } else {
          let g = gradient(p, r, x, source, whole: !updates.isEmpty, &a)
          u = updates.isEmpty && !g.moves ? g : p.update
          p.copy(g, to: u)
          if let e = b.rule.element { p.map(e, b.rule.id, a, u, x) }
          run(updates, p, r, u, g)
        }
        (a.scale, a.coupled) = (1, 0)
        let alone = b.updates.count == b.decays.count
        if b.moves, alone { a.lr = 1 }
        if b.leavesPoint, alone {
          p.copy(u, to: x)
        } else if let applier = b.applier, let e = applier.element {
          p.run(e.fused, applier.id, a, x, u)
        } else {
          p.move(x, u, a)
        }
      }
      run(rest, p, r, x, x)
      p.close(x)

    case .after:
      run(after, p, r, x, x)
      p.close(x)

    case .whole, .wholeAfter: break
    }
  }

  /// The gradient behind the chain of element-wise transforms; `apply.scale` is what is left to multiply by, which is
  /// nothing where the caller wants it `whole`. Stages at the front that only multiply are numbers, and cost nothing;
  /// where the kernel of the rule `folds`, it does the others as far as it can.
  private func gradient(
    _ p: Program, _ r: UnsafeMutablePointer<Record>, _ x: Program.Place, _ source: GradientOperation?, whole: Bool,
    folds: Bool = false, _ apply: inout Apply
  ) -> Program.Place {
    if scratchGradient, let scratch = keepsGradient ? p.second() : p.scratch() {
      apply.scale = 1
      if chain.isEmpty { return scratch }
      let g = p.gradientRow
      p.copy(scratch, to: g)
      run(chain, p, r, g, x)
      return g
    }
    var rest = chain[...], factor = 1.0
    while let s = rest.first, let more = s.element?.multiplies(r.pointee.rules[s.id]) {
      factor *= more
      rest = rest.dropFirst()
    }
    guard let source else {
      apply.scale *= factor
      if folds, fold(rest, p) { rest = [] }
      let g = p.gradient(copy: (whole && apply.scale != 1) || !rest.isEmpty, &apply)
      run(rest, p, r, g, x)
      return g
    }
    // what a source hands on is scaled already, and may not be written
    let copies = (whole && factor != 1) || !rest.isEmpty
    let g = p.gradient(source, copy: copies, &apply)
    if copies { run(chain, p, r, g, x) } else { apply.scale = factor }
    return g
  }

  /// All of them or none: a gradient in a row is read from there.
  private func fold(_ stages: some Collection<Stage>, _ p: Program) -> Bool {
    for s in stages {
      guard let e = s.element, p.fold(e, s.id) else {
        p.unfold()
        return false
      }
    }
    p.turnFold()
    return true
  }

  /// Something behind the rule looks at the gradient.
  private var compares: Bool { !updates.isEmpty || measured != nil }
  private func measureAlso(_ p: Program, _ u: Program.Place, _ g: Program.Place) {
    if let (s, phase) = measured, let e = s.element { p.measure(e.measure, s.id, phase, Apply(), u, g) }
  }

  /// Whether a stage changes anything.
  private func acts(_ s: Stage, _ r: UnsafeMutablePointer<Record>) -> Bool {
    s.element.map { $0.multiplies(r.pointee.rules[s.id]) != 1 } ?? false
  }
  private func run(
    _ stages: some Sequence<Stage>, _ p: Program, _ r: UnsafeMutablePointer<Record>, _ v: Program.Place,
    _ w: Program.Place
  ) {
    for s in stages { if let e = s.element, acts(s, r) { p.map(e, s.id, Apply(), v, w) } }
  }
}

/// The direction of the move in x, or of the move to the point in x; none where the step size is 0.
private struct MoveDirection: ElementOperation {
  let lr: Double, isPoint: Bool
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
    x = (isPoint ? g - x : x).direction(lr)
  }
}

private struct AddCoupled: ElementOperation {
  let weight: Double
  @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = x + weight * g }
}
