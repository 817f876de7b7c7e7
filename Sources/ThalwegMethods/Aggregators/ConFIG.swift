import ThalwegCore

/// ConFIG: the direction with the same cosine to every task gradient, as long as the sum of its projections.
///
///     u_i = g_i/‖g_i‖;   d = U⁺·pref;   u = d/‖d‖;   g = (Σ ⟨g_i, u⟩)·u
///
/// State    the gradient of every task.
/// Differs  nothing from torchjd.ConFIG; U⁺ = Uᵀ(UUᵀ)⁺, whose singular values below m·ε of the largest are 0, ε = 2⁻⁵²
///          for gradients in float64, else 2⁻²³. pref is 1 each by default; zero gradients count for nothing.
/// Tells    residual, by which the cosines miss pref, over ‖pref‖: 0 to rounding unless the gradients depend on one
///          another. (iterations is 0: it is solved at once.)
/// Source   Liu, Chu and Thuerey, 2024, arXiv:2408.11104.
struct ConFIG: GramianRule {
  static let method = Method(
    "config", .aggregator, "The direction with the same cosine to every task gradient.",
    rule: "u_i = g_i/|g_i|;  d = pinv(U) pref;  u = d/|d|;  g = (sum_i <g_i, u>) * u",
    source: "Liu, Chu, Thuerey, 2024, arXiv:2408.11104",
    parameters: [
      Tasks.parameter,
      .list("pref", nil, "cosines of the direction up to a common factor, 1 each when none", optional: true),
    ],
    slots: [Tasks.slot], requests: "task_gradient", needsFinite: true, validate: Tasks.check("config"))
  static var iterates: Bool { true }

  let pref: [Double]
  init(_ h: Hyper, _ tasks: Tasks) {
    let given = h.list("pref")
    pref = given.count == tasks.count ? given : [Double](repeating: 1, count: tasks.count)
  }

  func weights(_ G: Gramian, _ c: inout TaskContext) throws(Failure) -> [Double] {
    let norms = G.norms, f = norms.map { $0 > 0 ? 1 / $0 : 0 }, K = G.scaled(rows: f)
    let wanted = zip(pref, f).map { $1 > 0 ? $0 : 0 }
    let x = try K.applying({ 1 / $0 }, to: wanted, rounding: c.rounding), length = K.length(x)
    // of dependent gradients the cosines cannot be what is asked for: the nearest ones are taken
    let cosines = K.times(x), asked = dot(wanted, wanted).squareRoot()
    let off = zip(cosines, wanted).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }.squareRoot()
    c.convergence = Convergence(asked > 0 ? off / asked : 0, 0)
    // opposite gradients leave rounding alone
    guard length > 8 * Double(G.count) * c.rounding * dot(wanted, wanted).squareRoot() else { return x.map { _ in 0 } }
    let sum = dot(norms, K.times(x)) / length
    return zip(x, f).map { $0 * $1 * sum / length }
  }
}
