-- Functions that make functions: pipelines, memory of earlier results, counters.
local _, _, n = ...

local function compose(...)
  local all = { ... }
  return function(x)
    for i = 1, #all do x = all[i](x) end
    return x
  end
end

local function adder(k) return function(x) return x + k end end
local function memo(f)
  local known = {}
  return function(x)
    local y = known[x]
    if not y then
      y = f(x)
      known[x] = y
    end
    return y
  end
end

local sum, kept = 0, {}
for i = 1, tonumber(n or 1600000) do
  local count = 0
  local f = compose(adder(i % 10), function(x) count = count + 1 return x * 2 end, adder(-1))
  sum = sum + f(i) + f(1) + count
  if i % 50 == 0 then kept[i % 1000] = memo(f) end
  local m = kept[i % 1000]
  if m then sum = sum + m(i % 7) end
end
return ("%d"):format(sum)
