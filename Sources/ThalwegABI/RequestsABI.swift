import CThalweg
import ThalwegRunner
import ThalwegCore

// What requests of optimizers declare, and answers that go by those names.

private func declared(_ kind: Int32) throws(Failure) -> RequestKind {
  guard let d = Request.Kind(rawValue: kind)?.declared else {
    let most = Request.Kind.allCases.count - 1
    throw Failure(Status.range, "`kind` must be one of TW_REQUEST_GRADIENT to \(most), got \(kind)")
  }
  return d
}

@_cdecl("tw_request_kind")
public func requestKind(_ kind: Int32, _ info: UnsafeMutablePointer<tw_request_info>?) -> tw_status {
  status { () throws(Failure) in try fill(info, "info", describe(try declared(kind))) }
}

@_cdecl("tw_request_kind_tensor")
public func requestKindTensor(_ kind: Int32, _ tensor: Int, _ info: UnsafeMutablePointer<tw_input_info>?) -> tw_status {
  status { () throws(Failure) in try fill(info, "info", describe(try declared(kind), tensor)) }
}

@_cdecl("tw_optimizer_answer")
public func optimizerAnswer(
  _ p: OpaquePointer?, _ names: UnsafePointer<UnsafePointer<CChar>?>?, _ tensors: UnsafePointer<tw_tensor>?,
  _ count: Int
) -> tw_status {
  status { () throws(Failure) in
    try stepping(p) { (o) throws(Failure) in
      guard let kind = o.waiting?.kind, let request = kind.declared else {
        throw Failure(Status.sequence, "no request is waiting")
      }
      guard count >= 0, count <= 1 << 28 else {
        throw Failure(Status.count, "count must be 0 to 2^28, got \(UInt(bitPattern: count))")
      }
      guard count == 0 || names != nil else { throw null("names") }
      guard count == 0 || tensors != nil else { throw null("tensors") }
      let wanted = request.wanted.map(\.name)
      var first: [String: Int] = [:], many: [String: Int] = [:], last = ""
      for i in 0..<count {
        let name = try string(names?[i], "names[\(i)]")
        guard wanted.contains(name) else {
          let list = wanted.map { "`\($0)`" }.joined(separator: " and ")
          throw Failure(Status.argument, "`names[\(i)]` is \"\(name)\"; \(request.name) wants \(list)")
        }
        guard name == last || first[name] == nil else {
          throw Failure(Status.argument, "`names[\(i)]`: the tensors of `\(name)` do not stand in a row")
        }
        if first[name] == nil { first[name] = i }
        many[name, default: 0] += 1
        last = name
      }
      for input in request.wanted where !input.optional && first[input.name] == nil && o.count > 0 {
        throw Failure(Status.needs, "\(request.name) wants `\(input.name)` \(input.shape): \(input.meaning)")
      }
      func one(_ name: String) throws(Failure) -> View? {
        guard let at = first[name], let tensors else { return nil }
        guard many[name] == 1 else { throw Failure(Status.count, "`\(name)` is one tensor, got \(many[name] ?? 0)") }
        return try View(tensors[at], name)
      }
      let loss = wanted.contains("loss") ? try one("loss").map { (v) throws(Failure) in try number(v) } : nil
      if kind.takesMatrices {
        let list = [try one(wanted[0]), try one(wanted[1])]
        guard list.contains(where: { $0 != nil }) else {
          throw Failure(Status.needs, "\(request.name) wants `\(wanted[0])` or `\(wanted[1])`")
        }
        try o.answer(
          try list[0].map { (v) throws(Failure) in try HostMatrix(v, wanted[0]) },
          try list[1].map { (v) throws(Failure) in try HostMatrix(v, wanted[1]) })
      } else if let name = wanted.first(where: { $0 != "loss" }) {
        let at = tensors.map { $0 + (first[name] ?? 0) }
        if kind == .sampleGradients {
          try o.answer(samples: try samples(at, many[name] ?? 0))
        } else {
          try o.bindGradients(try gradients(o, at, many[name] ?? 0))
        }
      }
      o.told = loss
    }
  }
}

/// The number that a tensor of one element holds.
private func number(_ v: View) throws(Failure) -> Double {
  guard v.count == 1 else { throw Failure(Status.shape, "`loss` is one number, got \(v.count)") }
  var matrix = v
  (matrix.shape, matrix.strides) = ([1, 1], [1, 1])
  return try HostMatrix(matrix, "loss").values[0]
}

/// Gradients of samples, nil for parameters that are marked absent.
func samples(_ tensors: UnsafePointer<tw_tensor>?, _ count: Int) throws(Failure) -> [View?] {
  var list: [View?] = []
  for i in 0..<count {
    guard let t = tensors?[i], t.flags & UInt32(TW_TENSOR_ABSENT) == 0 else {
      list.append(nil)
      continue
    }
    list.append(try View(t, "samples \(i)"))
  }
  return list
}
