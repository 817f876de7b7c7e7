import CThalweg
import ThalwegRunner
import ThalwegCore

/// Pairs of a path and a value, from two arrays of `count` strings.
private func settings(
  _ paths: UnsafePointer<UnsafePointer<CChar>?>?, _ values: UnsafePointer<UnsafePointer<CChar>?>?, _ count: Int
) throws(Failure) -> [Optimizer.Setting] {
  guard count >= 0, count <= 1 << 16 else {
    throw Failure(Status.count, "the number of values must be 0 to 2^16, got \(UInt(bitPattern: count))")
  }
  var list: [Optimizer.Setting] = []
  guard count > 0 else { return list }
  guard let paths else { throw null("paths") }
  guard let values else { throw null("values") }
  for i in 0..<count { list.append((try string(paths[i], "paths[\(i)]"), try string(values[i], "values[\(i)]"))) }
  return list
}

@_cdecl("tw_optimizer_set_texts")
public func optimizerSetTexts(
  _ p: OpaquePointer?, _ group: UnsafePointer<CChar>?, _ paths: UnsafePointer<UnsafePointer<CChar>?>?,
  _ values: UnsafePointer<UnsafePointer<CChar>?>?, _ count: Int
) -> tw_status {
  status { () throws(Failure) in
    try Handles.with(p, .optimizer, Optimizer.self) { (o) throws(Failure) in
      try o.setTexts(group == nil ? nil : try o.group(try string(group, "group")), try settings(paths, values, count))
    }
  }
}

@_cdecl("tw_optimizer_add_group")
public func optimizerAddGroup(
  _ p: OpaquePointer?, _ parameters: UnsafePointer<tw_tensor>?, _ count: Int,
  _ names: UnsafePointer<UnsafePointer<CChar>?>?,
  _ group: UnsafePointer<CChar>?, _ paths: UnsafePointer<UnsafePointer<CChar>?>?,
  _ values: UnsafePointer<UnsafePointer<CChar>?>?,
  _ valueCount: Int
) -> tw_status {
  status { () throws(Failure) in
    try Handles.with(p, .optimizer, Optimizer.self) { (o) throws(Failure) in
      let list = try views(parameters, count, "parameter")
      var texts: [String]?
      if let names {
        var t: [String] = []
        for i in 0..<count { t.append(try string(names[i], "names[\(i)]")) }
        texts = t
      }
      try o.addParameters(
        list, texts, group == nil ? nil : try string(group, "group"), try settings(paths, values, valueCount))
    }
  }
}
