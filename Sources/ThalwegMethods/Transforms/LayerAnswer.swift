import ThalwegCore

/// What sources that ask for the activations of layers share: which tensors are layers, and whether an answer fits.
///
/// Layers are the tensors of rank 2 or more that are not marked as bias, norm or embedding, in the order of binding;
/// the answer to request k is that of layer k − 1.
enum LayerAnswer {
  static func takes(_ s: Shape) -> Bool { s.ndim >= 2 && s.count > 0 && s.role != 2 && s.role != 3 && s.role != 4 }

  static func check(_ answer: Answer, _ layers: [Int], _ phase: Int, _ io: SourceIO, _ method: String) throws(Failure) {
    guard phase >= 1, phase <= layers.count else {
      throw Failure(Status.sequence, "\(method) asked for no activations")
    }
    let s = io.shape(of: layers[phase - 1]), who = io.label(layers[phase - 1])
    guard let x = answer.first, let g = answer.second else {
      throw Failure(
        Status.argument,
        "\(method) needs the inputs of the layer of \(who) and the gradient at its pre-activations; one is missing")
    }
    guard x.columns == s.columns else {
      throw Failure(
        Status.shape,
        "\(who): the inputs have \(x.columns) columns, the weight of shape \(s.dimensions) needs \(s.columns)")
    }
    guard g.columns == s.rows else {
      throw Failure(
        Status.shape,
        "\(who): the gradient at the pre-activations has \(g.columns) columns, the weight of shape \(s.dimensions) "
          + "needs \(s.rows)")
    }
    guard x.rows == g.rows else {
      throw Failure(Status.shape, "\(who): \(x.rows) rows of inputs, but \(g.rows) rows of gradients")
    }
  }
}
