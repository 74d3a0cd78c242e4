-- A grammar of closures over a text: patterns put together from small ones, captures as tables.
local _, _, n = ...
local byte, sub = string.byte, string.sub

local function set(chars)
  local is = {}
  for i = 1, #chars do is[byte(chars, i)] = true end
  return function(s, i) if is[byte(s, i)] then return i + 1 end end
end

local function seq(...)
  local parts = { ... }
  return function(s, i, out)
    for k = 1, #parts do
      i = parts[k](s, i, out)
      if not i then return nil end
    end
    return i
  end
end

local function choice(...)
  local parts = { ... }
  return function(s, i, out)
    for k = 1, #parts do
      local mark, at = #out, parts[k](s, i, out)
      if at then return at end
      for m = #out, mark + 1, -1 do out[m] = nil end
    end
  end
end

local function many(part)
  return function(s, i, out)
    while true do
      local at = part(s, i, out)
      if not at then return i end
      i = at
    end
  end
end

local function capture(tag, part)
  return function(s, i, out)
    local inner = {}
    local at = part(s, i, inner)
    if at then out[#out + 1] = { tag = tag, text = #inner == 0 and sub(s, i, at - 1) or nil, unpack(inner, 1, #inner) } end
    return at
  end
end

local digit, space, letter = set("0123456789"), many(set(" \n")), set("abcdefghijklmnopqrstuvwxyz")
local function token(part) return seq(part, space) end
local expression
local function later(s, i, out) return expression(s, i, out) end
local number = token(capture("number", seq(digit, many(digit))))
local name = token(capture("name", seq(letter, many(letter))))
local factor = choice(number, name, seq(token(set("(")), later, token(set(")"))))
local term = capture("term", seq(factor, many(seq(token(capture("op", set("*/"))), factor))))
expression = capture("sum", seq(term, many(seq(token(capture("op", set("+-"))), term))))

local pieces = {}
for i = 1, 400 do pieces[i] = ("(%d + alpha * %d) / beta - (gamma + %d * (x - %d))"):format(i, i * 7, i % 13, i) end
local text = table.concat(pieces, " +\n ")

local function leaves(node)
  local sum = node.text and #node.text or 0
  for i = 1, #node do sum = sum + leaves(node[i]) end
  return sum
end

local sum = 0
for _ = 1, tonumber(n or 110) do
  local out = {}
  assert(expression(text, 1, out) == #text + 1)
  sum = sum + leaves(out[1])
end
return tostring(sum)
