-- Generators, pipelines of them, and a round-robin of thousands.
local _, _, n = ...
local yield, wrap = coroutine.yield, coroutine.wrap

local function numbers(to) return wrap(function() for i = 1, to do yield(i) end end) end
local function where(test, source) return wrap(function() for x in source do if test(x) then yield(x) end end end) end
local function pairs_of(source) return wrap(function() for x in source do yield({ x, x * x }) end end) end

local sum = 0
for round = 1, tonumber(n or 60) do
  for p in pairs_of(where(function(x) return x % 3 == round % 3 end, numbers(30000))) do sum = (sum + p[2]) % 1000003 end
  local tasks = {}
  for i = 1, 3000 do
    tasks[i] = coroutine.create(function()
      local mine = { i }
      for k = 1, i % 20 do
        mine[#mine + 1] = k
        yield()
      end
      sum = sum + #mine
    end)
  end
  while #tasks > 0 do
    local left = {}
    for _, task in ipairs(tasks) do
      coroutine.resume(task)
      if coroutine.status(task) ~= "dead" then left[#left + 1] = task end
    end
    tasks = left
  end
end
return tostring(sum)
