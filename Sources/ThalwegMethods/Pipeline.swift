import ThalwegCore

// What holds other methods: the uses of regularizers and constraints in a pipeline, and the routing of tensors.

let pipelineList: [Registered] = [
  holder(
    "penalty", .transform, .penalty, "Adds the gradient of a regularizer to the gradient.",
    rule: "g <- g + gradient of the regularizer at theta", .object("of", .regularizer, "the regularizer")),
  holder(
    "prox", .update, .prox, "Applies the proximal map of a regularizer after the step.",
    rule: "theta <- argmin_u 1/2*|u - theta|^2 + lr*regularizer(u)", .object("of", .regularizer, "the regularizer")),
  holder(
    "decoupled", .update, .decoupledPenalty, "Takes a gradient step on a regularizer after the rule's step.",
    rule: "after the step: theta <- theta - lr * gradient of the regularizer at theta",
    .object("of", .regularizer, "the regularizer")),
  holder(
    "project", .update, .project, "Puts the parameters back into a set after the step.",
    rule: "theta <- the nearest point of the set", .object("onto", .constraint, "the set")),
  holder(
    "manifold", .update, .manifold, "Steps along a manifold: the Riemannian gradient of the move, retracted.",
    rule: """
      u = the move, taken for a Euclidean gradient and made the Riemannian one at the point before it
      theta <- the retraction of u from that point;  sgd | manifold(m) is riemannian_sgd on m
      """, .object("on", .constraint, "the manifold")),
  Registered(
    method: Method(
      "route", .routing, "Sends tensors to pipelines by shape, role or name.",
      rule: """
        route(matrix=(muon), embedding=(sgd), "*.bias"=(sgd), other=(adamw)): the first selector that fits a tensor \
        takes it
        selectors: matrix, vector, scalar (by rank), bias, norm, embedding, head (by role), "a pattern" of names, other
        """,
      source: "", slots: [Slot.temporary("gradient", "the gradient of the step, while sources of its pipelines ask")]),
    component: .route),
]

private func holder(
  _ name: String, _ kind: Method.Kind, _ adapter: Adapter, _ summary: String, rule: String, _ parameter: Parameter
) -> Registered {
  var parameter = parameter
  parameter.schedulesHeld = true
  return Registered(
    method: Method(name, kind, summary, rule: rule, source: "", parameters: [parameter]), component: .adapter(adapter))
}
