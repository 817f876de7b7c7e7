import Glibc
import ThalwegCore

/// Truncated Newton: conjugate gradients on the Hessian, inside a trust region or before a line search.
///
///     H·p = −g by conjugate gradients from 0, until |res| ≤ min(½, √|g|)·|g|, at most cg_max products
///     trust: negative curvature and the border end at the border, ‖p‖ = radius; ρ = (f − f(θ + p))/−(g·p + ½·p·Hp)
///            radius/4 where ρ < ¼, min(2·radius, max_radius) where ρ > ¾ at the border;   θ ← θ + p where ρ > eta
///     linesearch: (H + damping·I); negative curvature ends with what there is, −g at the first product;
///            θ ← θ + t·p, t = 1, ½, ..., the first with f(θ + t·p) ≤ f + c1·t·g·p (60 halvings, else nothing moves)
///
/// State    the radius; within a step six vectors. `refused`: steps that moved nothing, for no trial was good enough;
///          `negative_curvature`: those that met it.
/// Errors   TW_ERROR_NONFINITE: a gradient, a Hessian-vector product, a loss: the step is refused and changes nothing.
/// Differs  cg_max none: 2·n, and 10 000 at the most.
/// Source   Steihaug, 1983; Nocedal, Wright, 2006, chapter 7.
struct NewtonCG: ElementRule {
  static let method = Method(
    "newton_cg", .optimizer,
    "Truncated Newton: conjugate gradients on the Hessian, in a trust region or before a search.",
    rule: """
      H p = -g by conjugate gradients, until |res| <= min(1/2, sqrt|g|)*|g|
      trust: |p| <= radius, theta <- theta + p where f falls by eta of what the model says;  the radius follows that
      linesearch: theta <- theta + t*p, t = 1, 1/2, ...: f(theta + t*p) <= f + c1*t*g.p
      """,
    source: "Steihaug, 1983; Nocedal, Wright, 2006, chapter 7",
    parameters: [
      .choice("mode", ["trust", "linesearch"], "what bounds a step", live: false),
      .number("radius", 1, .above(0), "trust region, at first").fixed,
      .number("max_radius", 1000, .above(0), "largest trust region").forAll,
      .number("eta", 0.15, .between(0, 0.25, lowOpen: false, highOpen: true), "gain above which a step is taken")
        .forAll,
      .number("c1", 1e-4, .between(0, 1, lowOpen: true, highOpen: true), "sufficient decrease").forAll,
      .number("damping", 0, .atLeast(0), "added to the Hessian (linesearch)").forAll,
      .maybeInteger("cg_max", .within(1, 10_000), "most products; none: twice the number of parameters"),
    ], requests: "loss_and_gradient, hessian_vector, loss, own-step")

  init(_ h: Hyper, _ c: StepContext) { lr = c.lr }
  let lr: Double
  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L { g.direction(lr) }
  @inline(__always) func step<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>, _ a: Apply) -> L { x - g }

  static func scalars(_ h: Hyper) -> [Scalar] {
    [Scalar("radius", h.radius)] + Inner.names.map { Scalar($0) }
      + ["refused", "negative_curvature"].map { Scalar($0, tells: true) }
  }
  static let registered = entry(NewtonCG.self, source: { (h) throws(Failure) in Inner(h) })

  struct Inner: Source {
    static var method: Method { NewtonCG.method }
    var handsDirection: Bool { true }
    let trust: Bool, limit: Int
    init(_ h: Hyper) { (trust, limit) = (h.is("mode", "trust"), h.has("cg_max") ? h.integer("cg_max") : 10_000) }
    private let home = 0, gradient = 1, p = 2, residual = 3, d = 4, product = 5, image = 6
    var slots: [Slot] {
      [
        .home("home", "the parameters of the step"), .temporary("gradient", "gradient of the step"),
        .temporary("p", "the step"), .temporary("residual", "g + H*p"), .temporary("d", "unit*direction of a product"),
        .temporary("product", "H*d"), .temporary("image", "H*p"),
      ]
    }
    var probe: Int? { d }
    var global: Bool { true }
    var opens: Bool { true }
    func opening(_ io: SourceIO) -> Ask? { Ask(.lossAndGradient) }
    var triesPoints: Bool { true }
    func most(_ tensors: Int) -> Int { limit + 64 }
    var kinds: [Request.Kind] { [.lossAndGradient, .hessianVector, .loss] }

    static let names = ["f", "size", "rr", "products", "inside", "model", "slope", "t", "unit"]
    private let refused = 1 + names.count, negativeCurvature = 2 + names.count
    private func number(_ io: SourceIO, _ name: String) -> Double {
      io.scalar(1 + (Self.names.firstIndex(of: name) ?? 0))
    }
    /// What d is longer than the direction.
    private func unit(_ io: SourceIO) -> Double {
      let x = number(io, "unit")
      return x == 0 ? 1 : x
    }
    private func set(_ io: SourceIO, _ name: String, _ x: Double) {
      io.setScalar(1 + (Self.names.firstIndex(of: name) ?? 0), x)
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase == 0 {
        set(io, "f", io.cost)
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        io.saveHome()
        io.change(SaveParameters(), slots: [home], parameters: false)
        io.add(p, 0, [], [])
        io.add(image, 0, [], [])
        io.copy(gradient, into: residual)
        io.copy(gradient, times: -1, into: d)
        let size = io.norm(gradient)
        guard size.isFinite else {
          throw Failure(Status.nonfinite, "the gradient has elements that are NaN or infinite")
        }
        if size == 0 { return .update(io.gradient(in: p)) }
        set(io, "size", size)
        set(io, "rr", size * size)
        for name in ["products", "t"] { set(io, name, 0) }
        for name in ["inside", "unit"] { set(io, name, 1) }
        return ask(io)
      }
      return number(io, "t") == 0 ? try multiplied(io) : tried(io)
    }

    /// The product with d, whose length is 1 to 2: of a short one it would be below the range of floats.
    private func ask(_ io: SourceIO) -> Move {
      let size = io.norm(d)
      if size > 0, size.isFinite {
        let scale = Double(sign: .plus, exponent: -size.exponent, significand: 1)
        io.add(d, scale, [], [])
        set(io, "unit", unit(io) * scale)
      }
      io.clearAbsent(d)
      return .ask(Ask(.hessianVector))
    }

    /// H·d came.
    private func multiplied(_ io: SourceIO) throws(Failure) -> Move {
      let h = io.hyper, done = number(io, "products") + 1
      set(io, "products", done)
      io.change(SaveGradient(), slots: [product], parameters: false)
      if !trust, h.damping > 0 { io.add(product, 1, [h.damping], [d]) }
      let bend = io.product(d, product), rr = number(io, "rr")
      guard bend.isFinite else {
        throw Failure(Status.nonfinite, "a Hessian-vector product has elements that are NaN or infinite")
      }
      if bend <= 0 {
        io.tally(negativeCurvature)
        if trust { return border(io) }
        if done == 1 {
          io.copy(d, times: 1 / unit(io), into: p)
          io.copy(product, times: 1 / unit(io), into: image)
        }
        return step(io)
      }
      let alpha = rr * unit(io) / bend  // of d
      if trust {
        let s = io.products(p, [p, d]), dd = io.product(d, d), radius = io.scalar(0)
        if s[0] + 2 * alpha * s[1] + alpha * alpha * dd >= radius * radius { return border(io) }
      }
      io.add(p, 1, [alpha], [d])
      io.add(image, 1, [alpha], [product])
      io.add(residual, 1, [alpha], [product])
      let next = io.product(residual, residual), size = number(io, "size")
      let most = h.has("cg_max") ? h.cg_max : min(2 * Double(io.elements), Double(limit))
      if next.squareRoot() <= min(0.5, size.squareRoot()) * size || done >= most { return step(io) }
      io.add(d, next / rr / unit(io), [-1], [residual])
      set(io, "rr", next)
      set(io, "unit", 1)
      return ask(io)
    }

    /// From p along d to the border of the region.
    private func border(_ io: SourceIO) -> Move {
      let s = io.products(p, [p, d]), dd = io.product(d, d), radius = io.scalar(0)
      let root = (s[1] * s[1] + dd * max(0, radius * radius - s[0])).squareRoot()
      let tau = s[1] > 0 ? max(0, radius * radius - s[0]) / (s[1] + root) : (root - s[1]) / dd
      io.add(p, 1, [tau], [d])
      io.add(image, 1, [tau], [product])
      set(io, "inside", 0)
      return step(io)
    }

    private func step(_ io: SourceIO) -> Move {
      let slope = io.product(gradient, p)
      set(io, "slope", slope)
      set(io, "model", -(slope + io.product(p, image) / 2))
      return go(io, 1)
    }
    private func go(_ io: SourceIO, _ t: Double) -> Move {
      set(io, "t", t)
      io.go(to: home, along: p, t)
      return .ask(Ask(.loss))
    }

    /// The loss at a trial came.
    private func tried(_ io: SourceIO) -> Move {
      let h = io.hyper, f = number(io, "f"), t = number(io, "t"), fall = f - io.cost
      if !trust {
        let enough = -fall <= h.c1 * t * number(io, "slope")
        if !enough, t > 0x1p-60 { return go(io, t / 2) }
        return finish(io, enough ? t : 0)
      }
      let ratio = fall / number(io, "model"), radius = io.scalar(0)
      // at the border, or to rounding of it
      let length = io.norm(p), outside = number(io, "inside") == 0 || abs(length - radius) <= 1e-8 * radius
      if !(ratio >= 0.25) {
        io.setScalar(0, radius / 4)
      } else if ratio > 0.75, outside {
        io.setScalar(0, min(2 * radius, h.max_radius))
      }
      return finish(io, ratio > h.eta ? 1 : 0)
    }
    private func finish(_ io: SourceIO, _ t: Double) -> Move {
      io.comeHome()
      if t == 0 { io.tally(refused) }
      io.add(p, -t, [], [])
      return .update(io.gradient(in: p))
    }
  }
}
