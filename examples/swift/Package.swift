// swift-tools-version:6.1
// swift run --package-path examples/swift
import PackageDescription

// thalweg's manifest has `unsafeFlags`, which SwiftPM takes from a package beside this one (a path, a submodule, `swift
// package edit`), and not from a version of a remote one.
let package = Package(
  name: "logistic",
  dependencies: [.package(name: "thalweg", path: "../..")],
  targets: [
    .executableTarget(name: "logistic", dependencies: [.product(name: "Thalweg", package: "thalweg")])
  ]
)
