package engine

// Translate is what every error of an operation goes through.
var Translate = translate
